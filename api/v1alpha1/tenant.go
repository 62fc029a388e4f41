package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Tenant is one tenant cluster. The controllers make its namespace tenant-<name> and the credentials of its CCM.
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

// TenantSpec has the permissions and limits of a tenant.
type TenantSpec struct {
	// LoadBalancer has KubeLB's settings for layer-4 load balancing.
	// +optional
	LoadBalancer TenantLoadBalancer `json:"loadBalancer,omitempty"`

	// BackendCIDRs are the networks of the tenant's nodes. Targets outside of them are refused. An empty list refuses every target.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(r, isCIDR(r))",message="spec.backendCIDRs: each entry must be a CIDR such as 198.51.100.0/24 or 2001:db8:1::/64"
	BackendCIDRs []string `json:"backendCIDRs,omitempty"`

	// BackendNetwork names the network of backendCIDRs. Give different names to sites that use the same private addresses: the same
	// address in two networks is two hosts. Within one network, or without a name, each address is a node of one tenant, and no target of
	// others: the tenant with the longest prefix in backendCIDRs, or of equal ones the first that listed the address.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$`
	BackendNetwork string `json:"backendNetwork,omitempty"`

	// Revoked removes the tenant's credentials and stops serving its LoadBalancers, which keep their addresses. Once it is false
	// again, the tenant gets new credentials. The old ones never work again.
	// +optional
	Revoked bool `json:"revoked,omitempty"`

	// BackendPorts are the ports of the tenant's nodes that may be targets. The default is 30000 to 32767, the default range of
	// NodePorts in Kubernetes.
	// +optional
	BackendPorts *PortRange `json:"backendPorts,omitempty"`

	// Limits bound the use of all LoadBalancers of the tenant together. A LoadBalancer beyond a limit waits for its addresses, with the
	// reason in its condition AddressAllocated. A LoadBalancer with addresses keeps them, also if a limit is lowered.
	// +optional
	Limits TenantLimits `json:"limits,omitzero"`

	// Objects bound the number of objects in the tenant's namespace, served or not. The API server refuses more, by the
	// ResourceQuota kubelb that the controllers make in this namespace.
	// +optional
	Objects TenantObjects `json:"objects,omitzero"`
}

// Default bounds of the number of objects in a tenant's namespace.
const (
	DefaultLoadBalancerObjects = 500
	DefaultAddressesObjects    = 10
)

// The default of limits.ports: DefaultPortsPerObject for each LoadBalancer that objects.loadBalancers allows, and at least DefaultPortsAtLeast.
const (
	DefaultPortsPerObject = 10
	DefaultPortsAtLeast   = 256
)

// The default of limits.endpointsPerLoadBalancer, for endpoints of one family that LoadBalancers do not share: DefaultOwnEndpoints divided by
// objects.loadBalancers, and at least DefaultOwnEndpointsAtLeast.
const (
	DefaultOwnEndpoints        = 125_000
	DefaultOwnEndpointsAtLeast = 250
)

// TenantObjects bound the number of objects of each kind that a tenant writes.
type TenantObjects struct {
	// LoadBalancers defaults to 500, or to twice limits.loadBalancers if that is more.
	// +optional
	// +kubebuilder:validation:Minimum=0
	LoadBalancers *int32 `json:"loadBalancers,omitempty"`
	// Addresses defaults to 10. A CCM needs one.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Addresses *int32 `json:"addresses,omitempty"`
}

// PortRange is a range of ports, with both ends.
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

// TenantLimits are the limits of a tenant. Without a value there is no limit, except for ports and endpoints.
type TenantLimits struct {
	// LoadBalancers is the greatest number of LoadBalancers with addresses.
	// +optional
	// +kubebuilder:validation:Minimum=0
	LoadBalancers *int32 `json:"loadBalancers,omitempty"`
	// Addresses is the greatest number of their addresses. An address that several LoadBalancers share counts once.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Addresses *int32 `json:"addresses,omitempty"`
	// Ports is the greatest number of ports of all LoadBalancers together. A port of a dual-stack LoadBalancer counts once. A LoadBalancer
	// with addresses that asks for too many ports keeps its former ports. The default is ten for each LoadBalancer that
	// objects.loadBalancers allows, and at least 256: 5000 if neither is set.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Ports *int32 `json:"ports,omitempty"`
	// EndpointsPerLoadBalancer is the greatest number of endpoints of each family of a LoadBalancer. If it has more, the first in the order
	// of addresses are used. Connections to an endpoint that is not used any more go on. By default only endpoints of
	// externalTrafficPolicy Local are bounded: to 125000 divided by objects.loadBalancers, and at least 250.
	// +optional
	// +kubebuilder:validation:Minimum=1
	EndpointsPerLoadBalancer *int32 `json:"endpointsPerLoadBalancer,omitempty"`
	// ConnectionsPerPort is the greatest number of connections and UDP flows of each port of each LoadBalancer at each gateway. Beyond it,
	// existing ones go on and new ones are not served.
	// +optional
	// +kubebuilder:validation:Minimum=1
	ConnectionsPerPort *int32 `json:"connectionsPerPort,omitempty"`
	// NewConnectionsPerSecondPerPort is the greatest number of connections and UDP flows that begin in a second at each port of each
	// LoadBalancer at each gateway. More are not served. Gateways with Envoy cannot bound them, and do not serve a tenant with this limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	NewConnectionsPerSecondPerPort *int32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// TenantUse is the use of each limit of a tenant.
type TenantUse struct {
	LoadBalancers int32 `json:"loadBalancers"`
	Addresses     int32 `json:"addresses"`
	// +optional
	Ports int32 `json:"ports,omitempty"`
	// EndpointsPerLoadBalancer is the number of endpoints of one family of the LoadBalancer with the most. This and the next fields are
	// absent without such a limit.
	// +optional
	EndpointsPerLoadBalancer *int32 `json:"endpointsPerLoadBalancer,omitempty"`
	// ConnectionsPerPort and NewConnectionsPerSecondPerPort are those of the busiest port at one gateway, to a twentieth of the limit. The
	// second one is a mean of fifteen seconds.
	// +optional
	ConnectionsPerPort *int32 `json:"connectionsPerPort,omitempty"`
	// +optional
	NewConnectionsPerSecondPerPort *int32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// TenantLoadBalancer has KubeLB's settings for layer-4 load balancing.
type TenantLoadBalancer struct {
	// Class is KubeLB's class of the Service on the management cluster. It is ignored.
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

// TenantStatus says whether the tenant's namespace and credentials exist, and what the tenant uses.
type TenantStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase is Pending, Ready, Failed, Revoked or Terminating.
	// +optional
	Phase string `json:"phase,omitempty"`
	// Used is the present use of the limits by the tenant's LoadBalancers.
	// +optional
	Used *TenantUse `json:"used,omitempty"`
	// Conditions are Ready; Bounded, whether the API server bounds the number of the tenant's objects; and Connected, whether the tenant's
	// CCM renews its Lease.
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
