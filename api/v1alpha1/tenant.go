package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Tenant is one tenant cluster. The manager makes its namespace tenant-<name> and the credentials of its CCM.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=kubelb
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Backend-CIDRs",type=string,JSONPath=`.spec.backendCIDRs`
// +kubebuilder:printcolumn:name="LoadBalancers",type=integer,JSONPath=`.status.used.loadBalancers`
// +kubebuilder:printcolumn:name="Addresses",type=integer,JSONPath=`.status.used.addresses`
// +kubebuilder:printcolumn:name="Ports",type=integer,JSONPath=`.status.used.ports`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || size(self.metadata.name) <= 56",optionalOldSelf=true,message="metadata.name may have at most 56 characters, so that the namespace tenant-<name> is valid"
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || !self.metadata.name.contains('.')",optionalOldSelf=true,message="metadata.name may have no dot, so that the namespace tenant-<name> is valid"
type Tenant struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   TenantSpec   `json:"spec,omitempty"`
	Status TenantStatus `json:"status,omitempty"`
}

// TenantSpec says what the tenant may do.
type TenantSpec struct {
	// LoadBalancer holds KubeLB's settings for layer-4 load balancing.
	// +optional
	LoadBalancer TenantLoadBalancer `json:"loadBalancer,omitempty"`

	// BackendCIDRs are the networks in which the tenant's nodes live. Targets outside of them are refused; an empty
	// list refuses every target.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(r, isCIDR(r))",message="spec.backendCIDRs: each entry must be a CIDR such as 198.51.100.0/24 or 2001:db8:1::/64"
	BackendCIDRs []string `json:"backendCIDRs,omitempty"`

	// BackendNetwork names the network that backendCIDRs are of. Tenants at several sites whose private addresses are the same have networks
	// of different names: the same address in two of them is two hosts. Within one network, the unnamed one as well, each address is a node
	// of one tenant and never a target of another: of the one whose backendCIDRs name it most precisely, or else of the one that was the
	// first to list it.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$`
	BackendNetwork string `json:"backendNetwork,omitempty"`

	// Revoked takes the tenant's credentials away and stops serving its LoadBalancers, which keep their addresses. When it is
	// taken back the tenant gets new credentials; the old ones never work again.
	// +optional
	Revoked bool `json:"revoked,omitempty"`

	// BackendPorts are the ports of the tenant's nodes that may be targets. Left out, they are 30000 to 32767, of which
	// clusters take NodePorts unless told otherwise.
	// +optional
	BackendPorts *PortRange `json:"backendPorts,omitempty"`

	// Limits bound what the tenant's LoadBalancers have together. One that would go beyond waits, with the reason in its
	// condition AddressAllocated; those that have addresses keep them, even where a limit is lowered below what there is.
	// +optional
	Limits TenantLimits `json:"limits,omitzero"`

	// Objects bound how many objects there may be in the tenant's namespace, served or not. The API server refuses more, by the
	// ResourceQuota kubelb that the manager makes there.
	// +optional
	Objects TenantObjects `json:"objects,omitzero"`
}

// Bounds of objects that a Tenant does not set.
const (
	DefaultLoadBalancerObjects = 500
	DefaultAddressesObjects    = 10
)

// Ports that a tenant's LoadBalancers may have where limits.ports is not set: so many for each object that there may be, and so many at least.
const (
	DefaultPortsPerObject = 10
	DefaultPortsAtLeast   = 256
)

// Endpoints of each family that LoadBalancers may have to themselves where limits.endpointsPerLoadBalancer is not set: so many in all, divided by the
// objects that there may be, and so many each at least.
const (
	DefaultOwnEndpoints        = 125_000
	DefaultOwnEndpointsAtLeast = 250
)

// TenantObjects bound how many objects there may be of each kind that a tenant writes.
type TenantObjects struct {
	// LoadBalancers is 500 unless it is set, or twice limits.loadBalancers where that is more.
	// +optional
	// +kubebuilder:validation:Minimum=0
	LoadBalancers *int32 `json:"loadBalancers,omitempty"`
	// Addresses is 10 unless it is set; a CCM needs one.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Addresses *int32 `json:"addresses,omitempty"`
}

// PortRange is a range of ports, both ends in it.
//
// +kubebuilder:validation:XValidation:rule="self.first <= self.last",message="first must not be greater than last"
type PortRange struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	First int32 `json:"first"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Last int32 `json:"last"`
}

// TenantLimits bound what a tenant has. What is left out is not bounded, except ports and endpoints.
type TenantLimits struct {
	// LoadBalancers is how many LoadBalancers may have addresses.
	// +optional
	// +kubebuilder:validation:Minimum=0
	LoadBalancers *int32 `json:"loadBalancers,omitempty"`
	// Addresses is how many addresses they may have; one that several share counts once.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Addresses *int32 `json:"addresses,omitempty"`
	// Ports is how many ports they may have together; one of a LoadBalancer with an address of each family counts once. A LoadBalancer
	// that has addresses goes on with the ports that it had when it asks for too many. It is ten for each LoadBalancer that there may be
	// by objects unless it is set, and 256 at least: 5000 where nothing is set.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Ports *int32 `json:"ports,omitempty"`
	// EndpointsPerLoadBalancer is how many endpoints of each family a LoadBalancer may have. Of more the first are used, in the order of
	// their addresses; connections to one that is used no more go on. Unless it is set, only endpoints that LoadBalancers do not share are
	// bounded, which are those of externalTrafficPolicy Local: to 125000 divided by objects.loadBalancers, and 250 at least.
	// +optional
	// +kubebuilder:validation:Minimum=1
	EndpointsPerLoadBalancer *int32 `json:"endpointsPerLoadBalancer,omitempty"`
	// ConnectionsPerPort is how many connections, and UDP flows, each port of each LoadBalancer may have at once at each gateway. Those
	// that there are go on; new ones beyond are not served.
	// +optional
	// +kubebuilder:validation:Minimum=1
	ConnectionsPerPort *int32 `json:"connectionsPerPort,omitempty"`
	// NewConnectionsPerSecondPerPort is how many connections, and UDP flows, may begin in a second at each port of each LoadBalancer at
	// each gateway; those beyond are not served. Gateways with Envoy cannot bound them, and do not serve a tenant with this limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	NewConnectionsPerSecondPerPort *int32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// TenantUse is what a tenant has, of that which limits bound.
type TenantUse struct {
	LoadBalancers int32 `json:"loadBalancers"`
	Addresses     int32 `json:"addresses"`
	// +optional
	Ports int32 `json:"ports,omitempty"`
	// EndpointsPerLoadBalancer is how many endpoints of one family the LoadBalancer has that has the most of them. Like what follows it is there
	// where there is such a limit.
	// +optional
	EndpointsPerLoadBalancer *int32 `json:"endpointsPerLoadBalancer,omitempty"`
	// ConnectionsPerPort and NewConnectionsPerSecondPerPort are those of the busiest port at the gateway where it has the most, to a twentieth of
	// the limit; the latter is a mean of fifteen seconds.
	// +optional
	ConnectionsPerPort *int32 `json:"connectionsPerPort,omitempty"`
	// +optional
	NewConnectionsPerSecondPerPort *int32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// TenantLoadBalancer holds KubeLB's settings for layer-4 load balancing.
type TenantLoadBalancer struct {
	// Class is KubeLB's class of the Service on the management cluster; this manager needs none and ignores it.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Class *string `json:"class,omitempty"`
	// Disable stops serving the tenant's LoadBalancers. They keep their addresses.
	// +optional
	Disable bool `json:"disable,omitempty"`
}

// Phases of a Tenant.
const (
	TenantPending     = "Pending"
	TenantReady       = "Ready"
	TenantFailed      = "Failed"
	TenantTerminating = "Terminating"
	TenantRevoked     = "Revoked"
)

// TenantStatus tells whether the tenant's namespace and credentials are there.
type TenantStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase is Pending, Ready, Failed, Revoked or Terminating.
	// +optional
	Phase string `json:"phase,omitempty"`
	// Used is what the tenant's LoadBalancers have at present.
	// +optional
	Used *TenantUse `json:"used,omitempty"`
	// Conditions are Ready; Bounded, which says whether the API server counts the tenant's objects; and Connected, which says whether the tenant's CCM is
	// heard.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// TenantList is a list of Tenants.
//
// +kubebuilder:object:root=true
type TenantList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Tenant `json:"items"`
}
