package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
)

const (
	// TenantNamespacePrefix and a tenant's name make its namespace on the hub.
	TenantNamespacePrefix = "tenant-"
	// DefaultAddresses names the object that all of a tenant's LoadBalancers refer to.
	DefaultAddresses = "default"

	typeLoadBalancer = "LoadBalancer"
)

// LoadBalancer is the hub's object of that kind, as far as translation needs it. The tenant side writes it, the hub
// side reads it.
type LoadBalancer struct {
	model.ObjectName
	// OriginNamespace and OriginName name the tenant's Service.
	OriginNamespace string `json:"originNamespace,omitempty"`
	OriginName      string `json:"originName,omitempty"`
	// Type is the Service's; only LoadBalancer is served.
	Type string `json:"type,omitempty"`
	// Ports are exposed; EndpointPorts, matched by name or else by position, are their ports on the nodes.
	Ports         []Port `json:"ports,omitempty"`
	EndpointPorts []Port `json:"endpointPorts,omitempty"`
	// Reference names the Addresses object with the nodes; when nil, Addresses holds them.
	Reference *model.ObjectName `json:"reference,omitempty"`
	Addresses []Address         `json:"addresses,omitempty"`
	// Local are the nodes with a ready endpoint; nil when the tenant does not tell.
	Local *[]Address `json:"local,omitempty"`
	// Packed may hold Addresses and Local in their place. Local then says only whether there is such a list.
	Packed PackedTargets `json:"-"`
	// LocalOnly is externalTrafficPolicy Local.
	LocalOnly bool `json:"localOnly,omitempty"`
	// Affinity keeps a client on its endpoint for AffinitySeconds (0: the default of three hours).
	Affinity        bool          `json:"affinity,omitempty"`
	AffinitySeconds int32         `json:"affinitySeconds,omitempty"`
	SourceRanges    []string      `json:"sourceRanges,omitempty"`
	Families        []ipam.Family `json:"families,omitempty"`
	FamilyPolicy    ipam.Policy   `json:"familyPolicy,omitempty"`
	Requested       []netip.Addr  `json:"requested,omitempty"`
	// HealthCheckNodePort answers on each node whether it has local endpoints; 0 means none.
	HealthCheckNodePort int32 `json:"healthCheckNodePort,omitempty"`
	// AddressPool is the pool that the addresses have to be of, empty for any.
	AddressPool string `json:"addressPool,omitempty"`
	// SharingKey is that by which LoadBalancers of the tenant share addresses, empty for none.
	SharingKey string `json:"sharingKey,omitempty"`
	// Forwarding is nat, transparent, direct or empty (the hub chooses).
	Forwarding string `json:"forwarding,omitempty"`
	// ProxyProtocol is v2, or empty: whether the nodes learn the client's address by that header, which TCP ports get.
	ProxyProtocol string `json:"proxyProtocol,omitempty"`
	// IdleTimeout is after how long a connection ends on which nothing is sent, such as 10m. If it is empty the dataplane decides.
	IdleTimeout string `json:"idleTimeout,omitempty"`
	// Malformed are problems that were found when the object was read, such as an annotation that says nothing.
	Malformed []Problem `json:"malformed,omitempty"`
	// VIPs are the addresses on record for it, in status.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// AdmittedPorts, in status as well, are those that are served where the tenant's limit of ports keeps others out; nil for all.
	AdmittedPorts *[]Port `json:"admittedPorts,omitempty"`

	// reached are the families of its endpoints, as Check has found them.
	reached []ipam.Family
}

// Allocate brings what the LoadBalancer holds in the book to what it asks for. One that is refused gets nothing new and
// keeps what it has, so that a mistake that is mended does not cost the address; what is no LoadBalancer any more gives it
// back. What it holds then, and AdmittedPorts, belong into its status. Where no family is asked for, one that Check has found endpoints of
// comes first.
func (lb *LoadBalancer) Allocate(book *ipam.Allocator, limits ipam.Limits, refused bool) *ipam.Refusal {
	holder := lb.ObjectName.String()
	if lb.Type != typeLoadBalancer {
		book.Release(holder)
		return nil
	}
	if refused {
		return nil
	}
	tenant, _ := TenantOf(lb.Namespace)
	lb.AdmittedPorts = nil
	_, refusal := book.Allocate(holder, ipam.Wish{Tenant: tenant, Families: lb.Families, Endpoints: lb.reached, Policy: lb.FamilyPolicy, Requested: lb.Requested, Pool: lb.AddressPool, Claim: lb.claim(lb.Ports), Limits: limits})
	if refusal != nil && refusal.KeptClaim != nil {
		admitted := []Port{}
		for _, p := range refusal.KeptClaim.Ports {
			admitted = append(admitted, Port{Number: p.Number, Protocol: p.Protocol})
		}
		lb.AdmittedPorts = &admitted
	}
	return refusal
}

// Claim is by what the LoadBalancer has the addresses that are on record.
func (lb *LoadBalancer) Claim() ipam.Claim {
	if lb.AdmittedPorts != nil {
		return lb.claim(*lb.AdmittedPorts)
	}
	return lb.claim(lb.Ports)
}

func (lb *LoadBalancer) claim(ports []Port) ipam.Claim {
	claim := ipam.Claim{Sharing: lb.SharingKey}
	for _, p := range ports {
		claim.Ports = append(claim.Ports, ipam.Port{Protocol: cmp.Or(p.Protocol, model.TCP.String()), Number: p.Number})
	}
	return claim
}

// Port is a port with its name and protocol. Number may be out of range in bad input.
type Port struct {
	Name     string `json:"name,omitempty"`
	Number   int32  `json:"number"`
	Protocol string `json:"protocol,omitempty"`
}

// Address is one target, by address or by name.
type Address struct {
	IP       string `json:"ip,omitempty"`
	Hostname string `json:"hostname,omitempty"`
}

// Addresses is the hub's object of that kind.
type Addresses struct {
	model.ObjectName
	List []Address `json:"addresses,omitempty"`
	// Held are the addresses in status.held: this tenant listed them first.
	Held []netip.Addr `json:"held,omitempty"`
}

// Tenant is what an operator allows a tenant.
type Tenant struct {
	Name string `json:"name"`
	// BackendCIDRs are where its nodes live; nothing outside is ever a target.
	BackendCIDRs []netip.Prefix `json:"backendCIDRs,omitempty"`
	// Network is where they are: the same address in two networks is two hosts'. Created is when the Tenant was made, in seconds.
	Network string `json:"network,omitempty"`
	Created int64  `json:"created,omitempty"`
	// Disabled: nothing of the tenant is served. Leaving: nor is it any more, since the Tenant is being deleted.
	Disabled bool `json:"disabled,omitempty"`
	Leaving  bool `json:"leaving,omitempty"`
	// BackendPorts are the ports of its nodes that may be targets; the zero value stands for UsualBackendPorts.
	BackendPorts PortRange `json:"backendPorts,omitzero"`
	// Limits bound what it has.
	Limits ipam.Limits `json:"limits,omitzero"`
	// EndpointsPerLoadBalancer is how many endpoints of each family a LoadBalancer may have; 0 means no limit.
	EndpointsPerLoadBalancer uint32 `json:"endpointsPerLoadBalancer,omitempty"`
	// OwnEndpointsPerLoadBalancer is the same for endpoints that LoadBalancers cannot share, where EndpointsPerLoadBalancer is 0: those of
	// externalTrafficPolicy Local, and those that stand in the LoadBalancer itself. Each LoadBalancer has its own memory and health checks for them.
	OwnEndpointsPerLoadBalancer uint32 `json:"ownEndpointsPerLoadBalancer,omitempty"`
	// ConnectionsPerPort and NewConnectionsPerSecondPerPort bound each frontend on each gateway; 0 means no limit.
	ConnectionsPerPort             uint32 `json:"connectionsPerPort,omitempty"`
	NewConnectionsPerSecondPerPort uint32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// equal tells whether the tenants are the same to what is forwarded.
func (t Tenant) equal(o Tenant) bool {
	return t.Network == o.Network && t.Created == o.Created && t.Disabled == o.Disabled && t.BackendPorts == o.BackendPorts && t.EndpointsPerLoadBalancer == o.EndpointsPerLoadBalancer &&
		t.OwnEndpointsPerLoadBalancer == o.OwnEndpointsPerLoadBalancer && t.ConnectionsPerPort == o.ConnectionsPerPort &&
		t.NewConnectionsPerSecondPerPort == o.NewConnectionsPerSecondPerPort && slices.Equal(t.BackendCIDRs, o.BackendCIDRs)
}

// PortRange is a range of ports, both ends in it.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// DefaultBackendPorts are those of which a cluster takes NodePorts unless it is told otherwise (kube-apiserver --service-node-port-range).
var DefaultBackendPorts = PortRange{30000, 32767}

func (t Tenant) backendPorts() PortRange {
	if t.BackendPorts == (PortRange{}) {
		return DefaultBackendPorts
	}
	return t.BackendPorts
}

// Namespace is where the tenant's objects are.
func (t Tenant) Namespace() string { return TenantNamespacePrefix + t.Name }

// TenantOf returns the name of the tenant whose namespace it is; false when it can be none's.
func TenantOf(namespace string) (string, bool) {
	name, ok := strings.CutPrefix(namespace, TenantNamespacePrefix)
	return name, ok && name != ""
}

// Problem is a reason why an object is not, or not wholly, served.
type Problem struct {
	// Reason is a stable CamelCase word.
	Reason string `json:"reason"`
	// Field is the path of the field that the problem lies in, such as spec.ports[0].port; empty for none in particular.
	Field string `json:"field,omitempty"`
	// Message names the field and the fix.
	Message string `json:"message"`
	// Partial: the object is served nevertheless, without the part that the message names.
	Partial bool `json:"partial,omitempty"`
}

// Reasons of problems.
const (
	ReasonNotLoadBalancer      = "NotLoadBalancer"
	ReasonTenantNotFound       = "TenantNotFound"
	ReasonTenantDisabled       = "TenantDisabled"
	ReasonTenantDeleted        = "TenantDeleted"
	ReasonNoPorts              = "NoPorts"
	ReasonInvalidAddress       = "InvalidAddress"
	ReasonInvalidPort          = "InvalidPort"
	ReasonUnsupportedProtocol  = "UnsupportedProtocol"
	ReasonDuplicatePort        = "DuplicatePort"
	ReasonPortsMismatch        = "PortsMismatch"
	ReasonNoNodePort           = "NoNodePort"
	ReasonReferenceNotAllowed  = "ReferenceNotAllowed"
	ReasonAddressesNotFound    = "AddressesNotFound"
	ReasonEndpointRefused      = "EndpointRefused"
	ReasonPortRefused          = "PortRefused"
	ReasonInvalidSourceRange   = "InvalidSourceRange"
	ReasonTooManySourceRanges  = "TooManySourceRanges"
	ReasonTooManyPorts         = "TooManyPorts"
	ReasonInvalidFamilyPolicy  = "InvalidFamilyPolicy"
	ReasonInvalidForwarding    = "InvalidForwarding"
	ReasonInvalidProxyProtocol = "InvalidProxyProtocol"
	ReasonInvalidIdleTimeout   = "InvalidIdleTimeout"
	ReasonInvalidAnnotation    = "InvalidAnnotation"
	ReasonInvalidAffinity      = "InvalidAffinity"
	ReasonConflict             = "FrontendConflict"
	ReasonNoLocalEndpoints     = "NoLocalEndpoints"
	ReasonNoNodes              = "NoNodes"
	ReasonNoNodesOfFamily      = "NoNodesOfFamily"
	ReasonNodesLeftOut         = "NodesLeftOut"
	ReasonCoversUsed           = "CoversUsedAddresses"
	// ReasonLimitReached is partial here: what is there besides is served.
	ReasonLimitReached = ipam.LimitReached
	// ReasonClientAddressNotKept is partial: traffic flows, from another source address than the policy lets expect.
	ReasonClientAddressNotKept = "ClientAddressNotKept"
)
