package translate

import (
	"net/netip"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
)

// LoadBalancer is the hub's object of that kind, as far as translation needs it. The tenant side writes it, the hub
// side reads it.
type LoadBalancer struct {
	model.ObjectName
	// OriginNamespace and OriginName name the tenant's Service.
	OriginNamespace, OriginName string
	// Type is the Service type; only LoadBalancer is served.
	Type string
	// Ports are exposed; EndpointPorts, matched by name or else by position, are their ports on the nodes.
	Ports         []Port
	EndpointPorts []Port
	// Reference names the Addresses object with the nodes; when nil, Addresses holds them.
	Reference *model.ObjectName
	Addresses []Address
	// Local are the nodes with a ready endpoint; nil when the tenant does not tell.
	Local *[]Address
	// LocalOnly is externalTrafficPolicy Local.
	LocalOnly bool
	// Affinity keeps a client on its endpoint for AffinitySeconds (0: the default of three hours).
	Affinity        bool
	AffinitySeconds int32
	SourceRanges    []string
	Families        []ipam.Family
	FamilyPolicy    ipam.Policy
	Requested       []netip.Addr
	// HealthCheckNodePort answers on each node whether it has local endpoints; 0 means none.
	HealthCheckNodePort int32
	// Forwarding is nat, transparent, direct or empty (the hub chooses).
	Forwarding string
	// VIPs are the addresses on record for it, in status.
	VIPs []netip.Addr
}

// Port is a port with its name and protocol. Number may be out of range in bad input.
type Port struct {
	Name     string
	Number   int32
	Protocol string
}

// Address is one target, by address or by name.
type Address struct {
	IP       string
	Hostname string
}

// Addresses is the hub's object of that kind.
type Addresses struct {
	model.ObjectName
	List []Address
}

// Tenant is what an operator allows a tenant.
type Tenant struct {
	Name string
	// BackendCIDRs are where its nodes live; nothing outside is ever a target.
	BackendCIDRs []netip.Prefix
	// Disabled: nothing of the tenant is served.
	Disabled bool
}

// Problem is a reason why an object is not, or not wholly, served.
type Problem struct {
	// Reason is a stable CamelCase word.
	Reason string
	// Field is the path of the field that the problem lies in, such as spec.ports[0].port; empty for none in particular.
	Field string
	// Message names the field and the fix.
	Message string
	// Partial: the object is served nevertheless, without the part that the message names.
	Partial bool
}

// Reasons of problems.
const (
	ReasonNotLoadBalancer     = "NotLoadBalancer"
	ReasonTenantNotFound      = "TenantNotFound"
	ReasonTenantDisabled      = "TenantDisabled"
	ReasonNoPorts             = "NoPorts"
	ReasonInvalidAddress      = "InvalidAddress"
	ReasonInvalidPort         = "InvalidPort"
	ReasonUnsupportedProtocol = "UnsupportedProtocol"
	ReasonDuplicatePort       = "DuplicatePort"
	ReasonPortsMismatch       = "PortsMismatch"
	ReasonNoNodePort          = "NoNodePort"
	ReasonReferenceNotAllowed = "ReferenceNotAllowed"
	ReasonAddressesNotFound   = "AddressesNotFound"
	ReasonEndpointRefused     = "EndpointRefused"
	ReasonInvalidSourceRange  = "InvalidSourceRange"
	ReasonInvalidAffinity     = "InvalidAffinity"
	ReasonConflict            = "FrontendConflict"
	ReasonNoNodes             = "NoNodes"
	// ReasonClientAddressNotKept is partial: traffic flows, from another source address than the policy lets expect.
	ReasonClientAddressNotKept = "ClientAddressNotKept"
)
