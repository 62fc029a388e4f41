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

// LoadBalancer has the fields of the hub's object of that kind that translation needs. The CCM writes it, the manager
// reads it.
type LoadBalancer struct {
	model.ObjectName
	// OriginNamespace and OriginName name the tenant's Service.
	OriginNamespace string `json:"originNamespace,omitempty"`
	OriginName      string `json:"originName,omitempty"`
	// Type is the Service's type. Only LoadBalancer is served.
	Type string `json:"type,omitempty"`
	// Ports are the exposed ports. EndpointPorts are their ports on the nodes, matched by name or else by position.
	Ports         []Port `json:"ports,omitempty"`
	EndpointPorts []Port `json:"endpointPorts,omitempty"`
	// Reference names the Addresses object with the nodes. If it is nil, the nodes are in Addresses.
	Reference *model.ObjectName `json:"reference,omitempty"`
	Addresses []Address         `json:"addresses,omitempty"`
	// Local are the nodes with a ready endpoint; nil if they are unknown.
	Local *[]Address `json:"local,omitempty"`
	// Packed may have the targets of Addresses and Local in their place. Local then says only whether there is such a list.
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
	// HealthCheckNodePort is the port on which each node says whether it has local endpoints; 0 means none.
	HealthCheckNodePort int32 `json:"healthCheckNodePort,omitempty"`
	// AddressPool is the pool that the addresses have to be in, empty for any.
	AddressPool string `json:"addressPool,omitempty"`
	// SharingKey is the key with which LoadBalancers of the tenant share addresses, empty for none.
	SharingKey string `json:"sharingKey,omitempty"`
	// Forwarding is nat, transparent, direct or empty (the hub chooses).
	Forwarding string `json:"forwarding,omitempty"`
	// ProxyProtocol is v2 or empty. v2 adds a header with the client's address to connections of TCP ports.
	ProxyProtocol string `json:"proxyProtocol,omitempty"`
	// IdleTimeout is how long a connection without packets is kept, such as 10m. Empty means the dataplane's default.
	IdleTimeout string `json:"idleTimeout,omitempty"`
	// Malformed are problems that were found when the object was read, such as an invalid annotation.
	Malformed []Problem `json:"malformed,omitempty"`
	// VIPs are its allocation, the addresses in its status.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// AdmittedPorts, also in status, are the ports that the tenant's limit of ports allows; nil for all.
	AdmittedPorts *[]Port `json:"admittedPorts,omitempty"`

	// endpointFamilies are the families of its endpoints. Check sets them.
	endpointFamilies []ipam.Family
}

// Allocate allocates the addresses that the LoadBalancer requests. If the LoadBalancer is refused, it gets no new addresses
// and keeps those that it has, so that an error in its spec does not cost it an address. If it is not of type LoadBalancer
// any more, its addresses are released. The caller writes the result and AdmittedPorts into the status. If the LoadBalancer
// requests no family, the families of endpoints that Check found come first.
func (lb *LoadBalancer) Allocate(allocator *ipam.Allocator, limits ipam.Limits, refused bool) *ipam.Refusal {
	owner := lb.ObjectName.String()
	if lb.Type != typeLoadBalancer {
		allocator.Release(owner)
		return nil
	}
	if refused {
		return nil
	}
	tenant, _ := TenantOf(lb.Namespace)
	lb.AdmittedPorts = nil
	_, refusal := allocator.Allocate(owner, ipam.Request{Tenant: tenant, Families: lb.Families, Endpoints: lb.endpointFamilies, Policy: lb.FamilyPolicy, Requested: lb.Requested, Pool: lb.AddressPool, Claim: lb.claim(lb.Ports), Limits: limits})
	if refusal != nil && refusal.KeptClaim != nil {
		admitted := []Port{}
		for _, p := range refusal.KeptClaim.Ports {
			admitted = append(admitted, Port{Number: p.Number, Protocol: p.Protocol})
		}
		lb.AdmittedPorts = &admitted
	}
	return refusal
}

// Claim returns the claim of the LoadBalancer's allocation.
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

// Port is a port with its name and protocol. In invalid input Number may be out of range.
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
	// Held are the addresses in status.held, which belong to this tenant although others may list them.
	Held []netip.Addr `json:"held,omitempty"`
}

// Tenant has what an operator allows a tenant.
type Tenant struct {
	Name string `json:"name"`
	// BackendCIDRs are the networks of its nodes. No address outside of them is a target.
	BackendCIDRs []netip.Prefix `json:"backendCIDRs,omitempty"`
	// Network is the network of its nodes. The same address in two networks belongs to two hosts. Created is when the Tenant was created, in seconds.
	Network string `json:"network,omitempty"`
	Created int64  `json:"created,omitempty"`
	// If Disabled or Leaving is set, nothing of the tenant is served. Leaving says that the Tenant is being deleted.
	Disabled bool `json:"disabled,omitempty"`
	Deleting bool `json:"leaving,omitempty"`
	// BackendPorts are the ports of its nodes that may be targets. The zero value means DefaultBackendPorts.
	BackendPorts PortRange `json:"backendPorts,omitzero"`
	// Limits bound the LoadBalancers, addresses and ports of the tenant.
	Limits ipam.Limits `json:"limits,omitzero"`
	// EndpointsPerLoadBalancer is how many endpoints of each family a LoadBalancer may have; 0 means no limit.
	EndpointsPerLoadBalancer uint32 `json:"endpointsPerLoadBalancer,omitempty"`
	// OwnEndpointsPerLoadBalancer is used if EndpointsPerLoadBalancer is 0, for endpoints that LoadBalancers cannot share: those of
	// externalTrafficPolicy Local, and those in the LoadBalancer itself. They take memory and health checks for each LoadBalancer.
	OwnEndpointsPerLoadBalancer uint32 `json:"ownEndpointsPerLoadBalancer,omitempty"`
	// ConnectionsPerPort and NewConnectionsPerSecondPerPort limit each frontend on each gateway; 0 means no limit.
	ConnectionsPerPort             uint32 `json:"connectionsPerPort,omitempty"`
	NewConnectionsPerSecondPerPort uint32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// equal reports whether the tenants are equal in all that affects forwarding.
func (t Tenant) equal(o Tenant) bool {
	return t.Network == o.Network && t.Created == o.Created && t.Disabled == o.Disabled && t.BackendPorts == o.BackendPorts && t.EndpointsPerLoadBalancer == o.EndpointsPerLoadBalancer &&
		t.OwnEndpointsPerLoadBalancer == o.OwnEndpointsPerLoadBalancer && t.ConnectionsPerPort == o.ConnectionsPerPort &&
		t.NewConnectionsPerSecondPerPort == o.NewConnectionsPerSecondPerPort && slices.Equal(t.BackendCIDRs, o.BackendCIDRs)
}

// PortRange is a range of ports, including both ends.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// DefaultBackendPorts is the default range of NodePorts (kube-apiserver --service-node-port-range).
var DefaultBackendPorts = PortRange{30000, 32767}

func (t Tenant) backendPorts() PortRange {
	if t.BackendPorts == (PortRange{}) {
		return DefaultBackendPorts
	}
	return t.BackendPorts
}

// Namespace returns the namespace of the tenant's objects on the hub.
func (t Tenant) Namespace() string { return TenantNamespacePrefix + t.Name }

// TenantOf returns the tenant of the namespace; false if it is no tenant's.
func TenantOf(namespace string) (string, bool) {
	name, ok := strings.CutPrefix(namespace, TenantNamespacePrefix)
	return name, ok && name != ""
}

// Problem is a reason why an object is not served, or only partly.
type Problem struct {
	// Reason is a stable CamelCase word.
	Reason string `json:"reason"`
	// Field is the path of the field with the problem, such as spec.ports[0].port; empty for none in particular.
	Field string `json:"field,omitempty"`
	// Message names the field and the fix.
	Message string `json:"message"`
	// Partial is set if the object is served without the part that the message names.
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
	// ReasonLimitReached is partial: all within the limit is served.
	ReasonLimitReached = ipam.LimitReached
	// ReasonClientAddressNotKept is partial: the Service is served, but nodes do not see the client's address as the policy promises.
	ReasonClientAddressNotKept = "ClientAddressNotKept"
)
