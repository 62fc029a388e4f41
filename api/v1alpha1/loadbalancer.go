package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LoadBalancer is the request of one Service for an external address. The tenant's CCM writes it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=lb,categories=kubelb
// +kubebuilder:printcolumn:name="Origin-NS",type=string,JSONPath=`.metadata.labels.kubelb\.k8c\.io/origin-ns`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.metadata.labels.kubelb\.k8c\.io/origin-name`
// +kubebuilder:printcolumn:name="VIP",type=string,JSONPath=`.status.summary.addresses`
// +kubebuilder:printcolumn:name="Ports",type=string,JSONPath=`.status.summary.ports`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Policy",type=string,priority=1,JSONPath=`.spec.externalTrafficPolicy`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type LoadBalancer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   LoadBalancerSpec   `json:"spec,omitempty"`
	Status LoadBalancerStatus `json:"status,omitempty"`
}

// LoadBalancerList is a list of LoadBalancers.
//
// +kubebuilder:object:root=true
type LoadBalancerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LoadBalancer `json:"items"`
}

// LoadBalancerSpec has the exposed ports and the targets of their traffic.
//
// +kubebuilder:validation:XValidation:rule="self.endpoints.map(e, (has(e.addresses) ? size(e.addresses) : 0) + (has(e.localAddresses) ? size(e.localAddresses) : 0)).sum() <= 5000",message="spec.endpoints: at most 5000 addresses and localAddresses together; write them into an Addresses object and refer to it"
// +kubebuilder:validation:XValidation:rule="self.endpoints.map(e, has(e.ports) ? size(e.ports) : 0).sum() <= 512",message="spec.endpoints: at most 512 ports together"
// +kubebuilder:validation:XValidation:rule="self.endpoints.all(e, !has(e.addresses) || e.addresses.map(a, has(a.hostname) ? size(a.hostname) : 0).sum() <= 16384)",message="spec.endpoints: host names of at most 16384 characters together; the hub resolves none, so give addresses"
// +kubebuilder:validation:XValidation:rule="self.endpoints.all(e, !has(e.localAddresses) || e.localAddresses.map(a, has(a.hostname) ? size(a.hostname) : 0).sum() <= 16384)",message="spec.endpoints: host names of at most 16384 characters together; the hub resolves none, so give addresses"
type LoadBalancerSpec struct {
	// Endpoints are the targets: each address (listed here or in an Addresses object) with each port. Only the first entry is
	// exposed. Its ports belong to the ports of the same name in spec.ports, or else at the same position.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Endpoints []LoadBalancerEndpoints `json:"endpoints"`

	// Ports are the exposed ports: each pair of port and protocol once.
	// +optional
	// +listType=map
	// +listMapKey=port
	// +listMapKey=protocol
	// +kubebuilder:validation:MaxItems=256
	Ports []LoadBalancerPort `json:"ports,omitempty"`

	// Hostname is KubeLB's layer-7 field. It is kept and not used.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-*_.:A-Za-z0-9]*$`
	Hostname string `json:"hostname,omitempty"`

	// Type is the type of the Service in the tenant cluster. Only type LoadBalancer gets an external address.
	// +optional
	// +kubebuilder:default=ClusterIP
	// +kubebuilder:validation:Enum=ClusterIP;NodePort;LoadBalancer;ExternalName;""
	Type corev1.ServiceType `json:"type,omitempty"`

	// ExternalTrafficPolicy is Cluster (each node of the tenant is a target) or Local (only nodes with a ready
	// endpoint of the Service are targets, see endpoints[].localAddresses). Empty means Cluster.
	// +optional
	// +kubebuilder:validation:Enum=Cluster;Local;""
	ExternalTrafficPolicy corev1.ServiceExternalTrafficPolicy `json:"externalTrafficPolicy,omitempty"`

	// Persistence sends all connections of a client to one endpoint.
	// +optional
	Persistence *Persistence `json:"persistence,omitempty"`

	// LoadBalancerSourceRanges are the networks of clients that may connect, of both families. Empty allows all.
	// Annotation form: kubelb.k8c.io/source-ranges.
	// +optional
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(r, isCIDR(r))",message="spec.loadBalancerSourceRanges: each entry must be a CIDR such as 192.0.2.0/24 or 2001:db8::/32"
	LoadBalancerSourceRanges []string `json:"loadBalancerSourceRanges,omitempty"`

	// IPFamilies are the requested address families, the primary one first. Empty leaves the choice to the AddressPools.
	// Annotation form: kubelb.k8c.io/ip-families.
	// +optional
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:Enum=IPv4;IPv6
	// +listType=set
	IPFamilies []corev1.IPFamily `json:"ipFamilies,omitempty"`

	// IPFamilyPolicy is SingleStack (one address), PreferDualStack (two addresses if an AddressPool has both) or RequireDualStack
	// (two addresses, or none until there are two). Annotation form: kubelb.k8c.io/ip-family-policy.
	// +optional
	// +kubebuilder:validation:Enum=SingleStack;PreferDualStack;RequireDualStack;""
	IPFamilyPolicy corev1.IPFamilyPolicy `json:"ipFamilyPolicy,omitempty"`

	// RequestedAddresses asks for these addresses, at most one of each family. If one is not free, the LoadBalancer waits: it never
	// gets another address instead. Annotation form: kubelb.k8c.io/requested-addresses.
	// +optional
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(a, isIP(a))",message="spec.requestedAddresses: each entry must be an IP address"
	RequestedAddresses []string `json:"requestedAddresses,omitempty"`

	// AddressPool names the AddressPool of the addresses. It may be one without autoAssign. Empty means any. If it changes, the addresses
	// change. Annotation form: kubelb.k8c.io/address-pool.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	AddressPool string `json:"addressPool,omitempty"`

	// SharingKey: LoadBalancers of one tenant with the same key share an address, as long as no two of them have the same port and
	// protocol. Annotation form: kubelb.k8c.io/sharing-key.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[^\x00-\x1f\x7f-\x9f]*$`
	SharingKey string `json:"sharingKey,omitempty"`

	// HealthCheckNodePort is the port at which each node says whether it has local endpoints (externalTrafficPolicy Local).
	// 0 means none. Annotation form: kubelb.k8c.io/health-check-node-port.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	HealthCheckNodePort int32 `json:"healthCheckNodePort,omitempty"`

	// Forwarding is the forwarding mode: nat (source and destination are rewritten), transparent (the source stays the client's
	// address, and nodes must route their answers by the gateway) or direct (only the MAC address is rewritten). Empty means the
	// default of the manager. Annotation form: kubelb.k8c.io/forwarding.
	// +optional
	// +kubebuilder:validation:Enum=nat;transparent;direct;""
	Forwarding string `json:"forwarding,omitempty"`

	// ProxyProtocol v2 sends the client's address to the nodes in a header of PROXY protocol version 2, before the first byte of each TCP
	// connection. It needs gateways with Envoy. Other dataplanes refuse the LoadBalancer. Empty sends no header. Annotation form:
	// kubelb.k8c.io/proxy-protocol.
	// +optional
	// +kubebuilder:validation:Enum=v2;""
	ProxyProtocol string `json:"proxyProtocol,omitempty"`

	// IdleTimeout ends connections and UDP flows that carry no packets for this time: 1s to 24h, in hours, minutes and seconds, such as 10m
	// or 1h30m. It needs gateways with eBPF or Envoy. Other dataplanes refuse the LoadBalancer. Empty means the default of the dataplane.
	// Annotation form: kubelb.k8c.io/idle-timeout.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || (self.matches('^([0-9]+[hms])+$') && duration(self) >= duration('1s') && duration(self) <= duration('24h'))",message="spec.idleTimeout: use 1s to 24h, in hours, minutes and seconds, such as 10m or 1h30m"
	IdleTimeout string `json:"idleTimeout,omitempty"`
}

// LoadBalancerEndpoints are targets: each address with each port.
type LoadBalancerEndpoints struct {
	// Name may be any text.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[^\x00-\x1f\x7f-\x9f]*$`
	Name string `json:"name,omitempty"`

	// Addresses are the addresses of the targets if addressesReference is not set.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=5000
	Addresses []EndpointAddress `json:"addresses,omitempty"`

	// AddressesReference names an Addresses object of the same namespace. If it is set, addresses is ignored.
	// +optional
	AddressesReference *AddressesReference `json:"addressesReference,omitempty"`

	// LocalAddresses are the nodes with a ready endpoint of the Service. They are the targets if externalTrafficPolicy is Local.
	// If present and empty, no node has one, and connections are refused. If absent, the CCM does not know them: all addresses are
	// targets, and health checks decide.
	// +optional
	// +kubebuilder:validation:MaxItems=5000
	LocalAddresses *[]EndpointAddress `json:"localAddresses,omitempty"`

	// Ports are the targets' ports: the tenant's NodePorts.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Ports []EndpointPort `json:"ports,omitempty"`

	// Packed is not part of the API: it has no name in JSON. The caches of the hub's programs keep addresses and localAddresses here, in less memory.
	Packed PackedTargets `json:"-"`
}

// PackedTargets are the addresses and localAddresses of an object at this resource version.
type PackedTargets struct {
	ResourceVersion  string
	Addresses, Local string
}

// AddressesReference names an Addresses object. It is a core ObjectReference with bounds for its values.
type AddressesReference struct {
	// Kind is Addresses, or empty.
	// +optional
	// +kubebuilder:validation:Enum=Addresses;""
	Kind string `json:"kind,omitempty"`
	// Namespace is the namespace of the LoadBalancer, or empty.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	Namespace string `json:"namespace,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	Name string `json:"name,omitempty"`
	// UID, apiVersion, resourceVersion and fieldPath are ignored.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	UID string `json:"uid,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-./A-Za-z0-9]*$`
	APIVersion string `json:"apiVersion,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[^\x00-\x1f\x7f-\x9f]*$`
	FieldPath string `json:"fieldPath,omitempty"`
}

// EndpointAddress is the address of one target: an IP address or a host name. If both are set, ip counts.
//
// +kubebuilder:validation:XValidation:rule="(has(self.ip) && size(self.ip) > 0) || (has(self.hostname) && size(self.hostname) > 0)",message="set ip or hostname"
type EndpointAddress struct {
	// IP is an IPv4 or IPv6 address. Loopback, link-local, multicast and unspecified addresses are refused.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self)",message="ip must be an IPv4 or IPv6 address; put a name into hostname"
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || !isIP(self) || (ip(self).isGlobalUnicast() && !ip(self).isUnspecified())",message="ip must be an address that a node can have: loopback, link-local, multicast and unspecified addresses are refused"
	IP string `json:"ip,omitempty"`

	// Hostname is a host name. The tenant's CCM resolves it; the hub never does.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-*_.:A-Za-z0-9]*$`
	Hostname string `json:"hostname,omitempty"`
}

// EndpointPort is a port of the targets.
type EndpointPort struct {
	// Name matches a name in spec.ports.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	Name string `json:"name,omitempty"`

	// Port is the NodePort in the tenant cluster. 0 means that the Service has none.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// Protocol is TCP or UDP; empty means TCP.
	// +optional
	// +kubebuilder:default=TCP
	// +kubebuilder:validation:Enum=TCP;UDP
	Protocol corev1.Protocol `json:"protocol,omitempty"`
}

// LoadBalancerPort is an exposed port.
type LoadBalancerPort struct {
	// Name matches a name in endpoints[].ports.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	Name string `json:"name,omitempty"`

	// Port is the port on the external address.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// Protocol is TCP or UDP; empty means TCP.
	// +optional
	// +kubebuilder:default=TCP
	// +kubebuilder:validation:Enum=TCP;UDP
	Protocol corev1.Protocol `json:"protocol,omitempty"`
}

// PersistenceSourceIP sends all connections of one client address to one endpoint.
const PersistenceSourceIP = "SourceIP"

// Persistence sends all connections of a client to one endpoint.
type Persistence struct {
	// Type is SourceIP.
	// +kubebuilder:validation:Enum=SourceIP
	Type string `json:"type"`

	// TimeoutSeconds is for how long after its last new connection a client keeps its endpoint. Empty means 10800.
	// Annotation form: kubelb.k8c.io/session-affinity-timeout-seconds.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	TimeoutSeconds *int32 `json:"timeoutSeconds,omitempty"`
}

// LoadBalancerStatus is what the controllers report.
type LoadBalancerStatus struct {
	// LoadBalancer is the status that the CCM copies into the Service. It has an address once a gateway serves the address.
	// +optional
	LoadBalancer corev1.LoadBalancerStatus `json:"loadBalancer,omitempty"`

	// Service is KubeLB's mapping of ports. It is not used.
	// +optional
	Service *ServiceStatus `json:"service,omitempty"`

	// Addresses is the allocation. Gateways serve these addresses.
	// +optional
	// +listType=map
	// +listMapKey=address
	Addresses []AllocatedAddress `json:"addresses,omitempty"`

	// AdmittedPorts are the served ports, if the tenant's limit of ports excludes others. If it is absent, all ports are served.
	// +optional
	// +listType=atomic
	AdmittedPorts *[]AdmittedPort `json:"admittedPorts,omitempty"`

	// Settings are the last valid values of annotations, by name. While a LoadBalancer has addresses, the last valid value of an
	// annotation stays in effect.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	Settings map[string]string `json:"settings,omitempty"`

	// Summary has lists as one line each, for the columns of kubectl get, which print one value.
	// +optional
	Summary *LoadBalancerSummary `json:"summary,omitempty"`

	// Conditions are Accepted, AddressAllocated, Programmed, Announced and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// LoadBalancerSummary is a LoadBalancer in a line of a table.
type LoadBalancerSummary struct {
	// Addresses are the addresses of status.addresses, with commas between them.
	// +optional
	Addresses string `json:"addresses,omitempty"`
	// Ports are the ports of spec.ports, such as 443/TCP, with commas between them.
	// +optional
	Ports string `json:"ports,omitempty"`
}

// AdmittedPort is a port that is served.
type AdmittedPort struct {
	Port int32 `json:"port"`
	// Protocol is TCP or UDP.
	Protocol corev1.Protocol `json:"protocol"`
}

// AllocatedAddress is one external address of this LoadBalancer.
type AllocatedAddress struct {
	// Address is an IPv4 or IPv6 address.
	Address string `json:"address"`
	// Pool is the AddressPool of the address.
	Pool string `json:"pool"`
}

// ServiceStatus is KubeLB's record of its Service on the management cluster.
type ServiceStatus struct {
	// +optional
	Ports []UpstreamServicePort `json:"ports,omitempty"`
}

// UpstreamServicePort is a port of the Service with the port in the tenant cluster.
type UpstreamServicePort struct {
	corev1.ServicePort `json:",inline"`
	// +optional
	UpstreamTargetPort int32 `json:"upstreamTargetPort,omitempty"`
}

// Addresses lists the addresses of a tenant's nodes.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=kubelb
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Addresses struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AddressesSpec   `json:"spec,omitempty"`
	Status AddressesStatus `json:"status,omitempty"`
}

// AddressesSpec lists node addresses of both families.
//
// +kubebuilder:validation:XValidation:rule="self.addresses.map(a, has(a.hostname) ? size(a.hostname) : 0).sum() <= 65536",message="spec.addresses: host names of at most 65536 characters together; the hub resolves none, so give addresses"
type AddressesSpec struct {
	// Addresses may be empty: then no node of the tenant takes traffic.
	// +kubebuilder:validation:MaxItems=5000
	Addresses []EndpointAddress `json:"addresses"`
}

// AddressesStatus is the record of the controllers.
type AddressesStatus struct {
	// Held are the addresses of spec.addresses whose owner is this tenant because it listed them first. Only addresses that another tenant
	// lists or has listed are here, and addresses that another tenant's backendCIDRs have with an equally long prefix.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=5000
	// +kubebuilder:validation:items:MaxLength=64
	Held []string `json:"held,omitempty"`
}

// AddressesList is a list of Addresses.
//
// +kubebuilder:object:root=true
type AddressesList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Addresses `json:"items"`
}
