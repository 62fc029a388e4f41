package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LoadBalancer is one Service's wish for an external address, written by the tenant's CCM.
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

// LoadBalancerSpec says what to expose and where traffic goes.
//
// +kubebuilder:validation:XValidation:rule="self.endpoints.map(e, (has(e.addresses) ? size(e.addresses) : 0) + (has(e.localAddresses) ? size(e.localAddresses) : 0)).sum() <= 5000",message="spec.endpoints: at most 5000 addresses and localAddresses together; write them into an Addresses object and refer to it"
// +kubebuilder:validation:XValidation:rule="self.endpoints.map(e, has(e.ports) ? size(e.ports) : 0).sum() <= 512",message="spec.endpoints: at most 512 ports together"
// +kubebuilder:validation:XValidation:rule="self.endpoints.all(e, !has(e.addresses) || e.addresses.map(a, has(a.hostname) ? size(a.hostname) : 0).sum() <= 16384)",message="spec.endpoints: host names of at most 16384 characters together; the hub resolves none, so give addresses"
// +kubebuilder:validation:XValidation:rule="self.endpoints.all(e, !has(e.localAddresses) || e.localAddresses.map(a, has(a.hostname) ? size(a.hostname) : 0).sum() <= 16384)",message="spec.endpoints: host names of at most 16384 characters together; the hub resolves none, so give addresses"
type LoadBalancerSpec struct {
	// Endpoints are the targets: addresses (or a reference to an Addresses object) times ports. Only the first entry is
	// exposed; its ports are matched with spec.ports by name, or else by position.
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

	// Hostname is KubeLB's layer-7 field; this manager keeps it and does nothing with it.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-*_.:A-Za-z0-9]*$`
	Hostname string `json:"hostname,omitempty"`

	// Type is the Service's type in the tenant cluster. Only LoadBalancer gets an external address.
	// +optional
	// +kubebuilder:default=ClusterIP
	// +kubebuilder:validation:Enum=ClusterIP;NodePort;LoadBalancer;ExternalName;""
	Type corev1.ServiceType `json:"type,omitempty"`

	// ExternalTrafficPolicy is Cluster (every node of the tenant is a target) or Local (only nodes with a ready
	// endpoint of the Service, see endpoints[].localAddresses). Empty means Cluster.
	// +optional
	// +kubebuilder:validation:Enum=Cluster;Local;""
	ExternalTrafficPolicy corev1.ServiceExternalTrafficPolicy `json:"externalTrafficPolicy,omitempty"`

	// Persistence keeps a client on one endpoint.
	// +optional
	Persistence *Persistence `json:"persistence,omitempty"`

	// LoadBalancerSourceRanges are the client networks that may connect, of either family. Empty allows all.
	// Annotation form: kubelb.k8c.io/source-ranges.
	// +optional
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(r, isCIDR(r))",message="spec.loadBalancerSourceRanges: each entry must be a CIDR such as 192.0.2.0/24 or 2001:db8::/32"
	LoadBalancerSourceRanges []string `json:"loadBalancerSourceRanges,omitempty"`

	// IPFamilies are the wished address families, the primary one first. Empty means whatever the pools offer first.
	// Annotation form: kubelb.k8c.io/ip-families.
	// +optional
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:Enum=IPv4;IPv6
	// +listType=set
	IPFamilies []corev1.IPFamily `json:"ipFamilies,omitempty"`

	// IPFamilyPolicy is SingleStack (one address), PreferDualStack (two if the pools can) or RequireDualStack (two, or
	// it stays pending). Annotation form: kubelb.k8c.io/ip-family-policy.
	// +optional
	// +kubebuilder:validation:Enum=SingleStack;PreferDualStack;RequireDualStack;""
	IPFamilyPolicy corev1.IPFamilyPolicy `json:"ipFamilyPolicy,omitempty"`

	// RequestedAddresses asks for these addresses, at most one of each family. An address that is not free is refused,
	// never replaced by another. Annotation form: kubelb.k8c.io/requested-addresses.
	// +optional
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(a, isIP(a))",message="spec.requestedAddresses: each entry must be an IP address"
	RequestedAddresses []string `json:"requestedAddresses,omitempty"`

	// AddressPool names the AddressPool that the addresses have to be of, also one without autoAssign. Empty means any. When it changes,
	// so do the addresses. Annotation form: kubelb.k8c.io/address-pool.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	AddressPool string `json:"addressPool,omitempty"`

	// SharingKey has LoadBalancers of one tenant that bear the same one share an address, as long as no port, of a protocol, is in two of
	// them. Annotation form: kubelb.k8c.io/sharing-key.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[^\x00-\x1f\x7f-\x9f]*$`
	SharingKey string `json:"sharingKey,omitempty"`

	// HealthCheckNodePort is where each node answers whether it has local endpoints (externalTrafficPolicy Local).
	// 0 means none. Annotation form: kubelb.k8c.io/health-check-node-port.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	HealthCheckNodePort int32 `json:"healthCheckNodePort,omitempty"`

	// Forwarding says how packets reach the nodes: nat (source and destination rewritten), transparent (the client's
	// address is kept; nodes must route back through the gateway) or direct (only the MAC is rewritten). Empty lets the
	// manager choose. Annotation form: kubelb.k8c.io/forwarding.
	// +optional
	// +kubebuilder:validation:Enum=nat;transparent;direct;""
	Forwarding string `json:"forwarding,omitempty"`

	// ProxyProtocol v2 sends the client's address to the nodes, in a PROXY protocol header of version 2 before the first byte of each TCP
	// connection. It needs gateways with Envoy: other dataplanes refuse the LoadBalancer. Empty sends no header. Annotation form:
	// kubelb.k8c.io/proxy-protocol.
	// +optional
	// +kubebuilder:validation:Enum=v2;""
	ProxyProtocol string `json:"proxyProtocol,omitempty"`

	// IdleTimeout ends connections and UDP flows on which nothing was sent for so long: 1s to 24h, in hours, minutes and seconds, such as 10m
	// or 1h30m. It needs gateways with eBPF or Envoy: other dataplanes refuse the LoadBalancer. Empty leaves it to the dataplane. Annotation form:
	// kubelb.k8c.io/idle-timeout.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || (self.matches('^([0-9]+[hms])+$') && duration(self) >= duration('1s') && duration(self) <= duration('24h'))",message="spec.idleTimeout: use 1s to 24h, in hours, minutes and seconds, such as 10m or 1h30m"
	IdleTimeout string `json:"idleTimeout,omitempty"`
}

// LoadBalancerEndpoints is a set of addresses times a set of ports.
type LoadBalancerEndpoints struct {
	// Name is free.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[^\x00-\x1f\x7f-\x9f]*$`
	Name string `json:"name,omitempty"`

	// Addresses are the targets when addressesReference is not set.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=5000
	Addresses []EndpointAddress `json:"addresses,omitempty"`

	// AddressesReference names an Addresses object of the same namespace; addresses is ignored when it is set.
	// +optional
	AddressesReference *AddressesReference `json:"addressesReference,omitempty"`

	// LocalAddresses are the nodes that have a ready endpoint of the Service now; they are the targets when
	// externalTrafficPolicy is Local. Present and empty means that no node has one: connections are refused.
	// Absent means that the CCM does not tell: all addresses are targets and health checks decide.
	// +optional
	// +kubebuilder:validation:MaxItems=5000
	LocalAddresses *[]EndpointAddress `json:"localAddresses,omitempty"`

	// Ports are the targets' ports: the tenant's NodePorts.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Ports []EndpointPort `json:"ports,omitempty"`

	// Packed is no part of the API: it has no name in JSON. The manager's cache keeps addresses and localAddresses there, in less memory.
	Packed PackedTargets `json:"-"`
}

// PackedTargets are addresses and localAddresses of an object of this resource version.
type PackedTargets struct {
	ResourceVersion  string
	Addresses, Local string
}

// AddressesReference names an Addresses object. It is a core ObjectReference whose values have an alphabet and a length.
type AddressesReference struct {
	// Kind is Addresses, or empty.
	// +optional
	// +kubebuilder:validation:Enum=Addresses;""
	Kind string `json:"kind,omitempty"`
	// Namespace is the LoadBalancer's own, or empty.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	Namespace string `json:"namespace,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	Name string `json:"name,omitempty"`
	// UID, apiVersion, resourceVersion and fieldPath are not looked at.
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

// EndpointAddress is one target, by IP address or by host name; ip wins.
//
// +kubebuilder:validation:XValidation:rule="(has(self.ip) && size(self.ip) > 0) || (has(self.hostname) && size(self.hostname) > 0)",message="set ip or hostname"
type EndpointAddress struct {
	// IP is an IPv4 or IPv6 address. Loopback, link-local, multicast and unspecified addresses are refused.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self)",message="ip must be an IPv4 or IPv6 address; put a name into hostname"
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || !isIP(self) || (ip(self).isGlobalUnicast() && !ip(self).isUnspecified())",message="ip must be an address that a node can have: loopback, link-local, multicast and unspecified addresses are refused"
	IP string `json:"ip,omitempty"`

	// Hostname is a host name. The hub never resolves a tenant's names; the tenant's CCM does.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-*_.:A-Za-z0-9]*$`
	Hostname string `json:"hostname,omitempty"`
}

// EndpointPort is a port on the targets.
type EndpointPort struct {
	// Name matches a name in spec.ports.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`
	Name string `json:"name,omitempty"`

	// Port is the tenant's NodePort; 0 says that the Service has none.
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

// PersistenceSourceIP keeps all connections of one client address on one endpoint.
const PersistenceSourceIP = "SourceIP"

// Persistence keeps a client on one endpoint.
type Persistence struct {
	// Type is SourceIP.
	// +kubebuilder:validation:Enum=SourceIP
	Type string `json:"type"`

	// TimeoutSeconds is how long a client is remembered after its last new connection. Empty means 10800.
	// Annotation form: kubelb.k8c.io/session-affinity-timeout-seconds.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	TimeoutSeconds *int32 `json:"timeoutSeconds,omitempty"`
}

// LoadBalancerStatus is the manager's answer.
type LoadBalancerStatus struct {
	// LoadBalancer is what the CCM copies into the Service. An address appears here once a gateway serves it.
	// +optional
	LoadBalancer corev1.LoadBalancerStatus `json:"loadBalancer,omitempty"`

	// Service is KubeLB's port mapping; this manager leaves it alone.
	// +optional
	Service *ServiceStatus `json:"service,omitempty"`

	// Addresses is the durable allocation. Gateways program what stands here.
	// +optional
	// +listType=map
	// +listMapKey=address
	Addresses []AllocatedAddress `json:"addresses,omitempty"`

	// AdmittedPorts are those that are served, where the tenant's limit of ports keeps others out; unset, all are.
	// +optional
	// +listType=atomic
	AdmittedPorts *[]AdmittedPort `json:"admittedPorts,omitempty"`

	// Settings are the annotations that ask for something, by name, as they were last understood. While a LoadBalancer has addresses, an annotation
	// that cannot be read any more stays as it was.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	Settings map[string]string `json:"settings,omitempty"`

	// Summary has lists in one line each, for the columns of kubectl get, which print one value.
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
	// Addresses are those of status.addresses, with commas between them.
	// +optional
	Addresses string `json:"addresses,omitempty"`
	// Ports are those of spec.ports, as 443/TCP, with commas between them.
	// +optional
	Ports string `json:"ports,omitempty"`
}

// AdmittedPort is a port that is served.
type AdmittedPort struct {
	Port int32 `json:"port"`
	// Protocol is TCP or UDP.
	Protocol corev1.Protocol `json:"protocol"`
}

// AllocatedAddress is one external address that belongs to this LoadBalancer.
type AllocatedAddress struct {
	// Address is an IPv4 or IPv6 address.
	Address string `json:"address"`
	// Pool is the AddressPool that it came from.
	Pool string `json:"pool"`
}

// ServiceStatus is KubeLB's record of the Service that it makes on the management cluster.
type ServiceStatus struct {
	// +optional
	Ports []UpstreamServicePort `json:"ports,omitempty"`
}

// UpstreamServicePort is a Service port and the tenant's port behind it.
type UpstreamServicePort struct {
	corev1.ServicePort `json:",inline"`
	// +optional
	UpstreamTargetPort int32 `json:"upstreamTargetPort,omitempty"`
}

// Addresses are a tenant's node addresses.
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
	// Addresses may be empty: then no node of the tenant can take traffic.
	// +kubebuilder:validation:MaxItems=5000
	Addresses []EndpointAddress `json:"addresses"`
}

// AddressesStatus is the manager's record.
type AddressesStatus struct {
	// Held are addresses of spec.addresses that belong to this tenant because it listed them first. An address is here only if the backendCIDRs of
	// another tenant name it as precisely, or another tenant lists it, or did.
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
