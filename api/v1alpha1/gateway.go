package v1alpha1

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Gateway is a host that runs the gateway role of kubelb-manager. The gateway makes this object and writes its status.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lbgw,categories=kubelb
// +kubebuilder:printcolumn:name="Backend",type=string,JSONPath=`.status.backend.name`
// +kubebuilder:printcolumn:name="Frontends",type=integer,JSONPath=`.status.frontends`
// +kubebuilder:printcolumn:name="Addresses",type=integer,JSONPath=`.status.announcedAddresses`
// +kubebuilder:printcolumn:name="Draining",type=boolean,priority=1,JSONPath=`.spec.draining`
// +kubebuilder:printcolumn:name="BGP",type=string,priority=1,JSONPath=`.status.bgpSessions`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || size(self.metadata.name) <= 63",optionalOldSelf=true,message="metadata.name may have at most 63 characters, since it is a label of the gateway's Lease"
type Gateway struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   GatewaySpec   `json:"spec,omitempty"`
	Status GatewayStatus `json:"status,omitempty"`
}

// GatewaySpec is what operators tell a gateway. All else is configured by flags on its host.
type GatewaySpec struct {
	// Draining: the gateway answers for no address any more, and takes no new connections. Existing ones go on: other gateways
	// redirect their packets to it. `kubelb drain` sets it.
	// +optional
	Draining bool `json:"draining,omitempty"`
}

// GatewayStatus is what the gateway reports.
type GatewayStatus struct {
	// Backend is the dataplane.
	// +optional
	Backend GatewayBackend `json:"backend,omitempty"`
	// AppliedResourceVersion: the dataplane holds all LoadBalancers up to this resourceVersion. Exceptions are LoadBalancers in
	// failures, some of the namespaces in unlisted, and those of the namespaces in behind. Resource versions of one API server
	// are ordered (KEP-5504).
	// +optional
	AppliedResourceVersion string `json:"appliedResourceVersion,omitempty"`
	// AnnouncedResourceVersion: the addresses of all LoadBalancers up to this resourceVersion are announced, with the same exceptions.
	// +optional
	AnnouncedResourceVersion string `json:"announcedResourceVersion,omitempty"`
	// Behind are the namespaces with changes that the dataplane does not hold yet. Changes of other namespaces do not wait for them.
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +kubebuilder:validation:MaxItems=1000
	Behind []GatewayBehind `json:"behind,omitempty"`
	// Generation is the generation of the model that the dataplane holds, with the epoch of the gateway's process.
	// +optional
	Generation string `json:"generation,omitempty"`
	// Frontends is the number of served frontends: address, protocol and port.
	// +optional
	Frontends int32 `json:"frontends"`
	// AnnouncedAddresses is the number of addresses that this gateway announces.
	// +optional
	AnnouncedAddresses int32 `json:"announcedAddresses"`
	// HostAddresses are the first 256 addresses of the gateway's host, of all its interfaces. No tenant may target them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=64
	HostAddresses []string `json:"hostAddresses,omitempty"`
	// Elects: the gateways elect one of them for each address. Otherwise each gateway announces all addresses that its dataplane holds.
	// +optional
	Elects bool `json:"elects,omitempty"`
	// Candidates are the gateways that take part in the election, in the view of this gateway.
	// +optional
	// +kubebuilder:validation:MaxItems=1000
	Candidates []string `json:"candidates,omitempty"`
	// WithoutIPv4 names the candidates that answer for no IPv4 address, because their interfaces have no IPv4.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	WithoutIPv4 []string `json:"withoutIPv4,omitempty"`
	// WithoutIPv6 names the candidates that answer for no IPv6 address, because their interfaces have no IPv6.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	WithoutIPv6 []string `json:"withoutIPv6,omitempty"`
	// BGPSessions are the sessions with the routers of the BGPPeer objects, if this gateway announces by BGP.
	// +optional
	// +listType=map
	// +listMapKey=peer
	// +kubebuilder:validation:MaxItems=1000
	BGPSessions []BGPSession `json:"bgpSessions,omitempty"`
	// Silent are the address families that this gateway announces to nobody, with the reason. Other gateways announce addresses of these families, or none
	// does.
	// +optional
	// +listType=map
	// +listMapKey=family
	// +kubebuilder:validation:MaxItems=2
	Silent []GatewaySilence `json:"silent,omitempty"`
	// Tenants is the use of limits of connections at this gateway, for the first 1000 tenants with such limits.
	// +optional
	// +listType=map
	// +listMapKey=tenant
	// +kubebuilder:validation:MaxItems=1000
	Tenants []GatewayTenantUse `json:"tenants,omitempty"`
	// Failures are records that the dataplane refused: the first one of each LoadBalancer, for at most 20 LoadBalancers of each tenant. Former
	// dataplanes that could not be purged are here as well.
	// +optional
	// +kubebuilder:validation:MaxItems=1100
	Failures []GatewayFailure `json:"failures,omitempty"`
	// Unlisted are the namespaces with more refused LoadBalancers than failures lists: other LoadBalancers of these namespaces may be refused, too. "*"
	// means all namespaces, if there are more than 1000.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	Unlisted []string `json:"unlisted,omitempty"`
	// Conflicts are up to 64 addresses that this gateway answers for and that another host on the segment has as well.
	// +optional
	// +listType=map
	// +listMapKey=address
	// +kubebuilder:validation:MaxItems=100
	Conflicts []AddressConflict `json:"conflicts,omitempty"`
	// Tries are the results of tries of the TCP ports that this gateway answers for. Absent if the gateway makes no tries.
	// +optional
	Tries *GatewayTries `json:"tries,omitempty"`
	// Conditions: Ready: the dataplane runs and holds the model. BGPEstablished: each router has a session. Drained: a draining gateway has
	// withdrawn all addresses. The others are present only in case of a fault: AddressConflict, BackendBusy, Served, HeartbeatsRefused, and
	// HostKernel, HostModules, HostSysctls and the like, which say what the host lacks and how to mend it.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// GatewayBackend names a dataplane.
type GatewayBackend struct {
	// +optional
	Name string `json:"name,omitempty"`
	// +optional
	Version string `json:"version,omitempty"`
	// +optional
	Features []string `json:"features,omitempty"`
	// Notes say how the dataplane works on this host, such as whether known flows take a fast path.
	// +optional
	Notes []string `json:"notes,omitempty"`
}

// GatewayTries are the results of the tries of TCP ports.
type GatewayTries struct {
	// Answered is the number of ports whose last try was answered.
	Answered int32 `json:"answered"`
	// Untried is the number of ports without a result: not tried yet, or not often enough.
	Untried int32 `json:"untried"`
	// Failing is the number of ports to which connections fail.
	Failing int32 `json:"failing"`
	// Problem is why no port can be tried, or why answers are lost.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Problem string `json:"problem,omitempty"`
	// Failures has the first failing port of each LoadBalancer, for at most 20 LoadBalancers of each tenant. An entry may also be a
	// port that possibly fails: its message says so.
	// +optional
	// +kubebuilder:validation:MaxItems=1000
	Failures []GatewayFailure `json:"failures,omitempty"`
	// Unlisted are the namespaces with more failing LoadBalancers than failures lists. "*" means all namespaces, if there are more than 1000.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	Unlisted []string `json:"unlisted,omitempty"`
}

// GatewayBehind is a namespace whose LoadBalancers the dataplane holds up to a resourceVersion of its own.
type GatewayBehind struct {
	Namespace string `json:"namespace"`
	// ResourceVersion: the dataplane holds all LoadBalancers of the namespace up to this one, with the exceptions of appliedResourceVersion.
	ResourceVersion string `json:"resourceVersion"`
}

// AddressConflict is an address that a host has that is no gateway.
type AddressConflict struct {
	Address string `json:"address"`
	// MAC is the last known MAC address of that host.
	MAC string `json:"mac"`
}

// GatewayTenantUse is the use of a tenant's busiest ports at a gateway, to a twentieth of the limit.
type GatewayTenantUse struct {
	Tenant string `json:"tenant"`
	// ConnectionsPerPort is the number of connections and UDP flows of the port with the most.
	// +optional
	ConnectionsPerPort *int32 `json:"connectionsPerPort,omitempty"`
	// NewConnectionsPerSecondPerPort is the number of new connections and UDP flows in a second at the port with the most, as a mean of
	// fifteen seconds.
	// +optional
	NewConnectionsPerSecondPerPort *int32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// GatewaySilence is an address family that a gateway announces to nobody, with the reason.
type GatewaySilence struct {
	// +kubebuilder:validation:Enum=IPv4;IPv6
	Family corev1.IPFamily `json:"family"`
	// Message is the reason, with the names of the BGPPeers or interfaces.
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message"`
}

// BGPSession is the session of one gateway with the router of a BGPPeer.
type BGPSession struct {
	// Peer is the name of the BGPPeer.
	Peer string `json:"peer"`
	// Address is the address of the router.
	Address string `json:"address"`
	// State is Established or Down.
	// +kubebuilder:validation:Enum=Established;Down
	State string `json:"state"`
	// BFD is Up or Down, if the BGPPeer has spec.bfd.
	// +optional
	// +kubebuilder:validation:Enum=Up;Down
	BFD string `json:"bfd,omitempty"`
	// Since is when the session came into this state.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Families are the address families that are announced to the router: both sides have negotiated them, and the gateway has a next hop of each.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=2
	Families []corev1.IPFamily `json:"families,omitempty"`
	// Message is why the session is down and which side ended it, or why a family of the BGPPeer is not announced to the router, or why BFD cannot
	// work on this host.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
}

// States of a BGPSession.
const (
	BGPEstablished = "Established"
	BGPDown        = "Down"
)

// GatewayFailure is one record that could not be applied or announced.
type GatewayFailure struct {
	// LoadBalancer is the namespace/name of the LoadBalancer. It is empty if the record is a pool that several LoadBalancers share.
	// +optional
	LoadBalancer string `json:"loadBalancer,omitempty"`
	// Record is the name of the record in the model.
	Record string `json:"record"`
	// Message is the reason that the dataplane gave.
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message"`
}

// GatewayList is a list of Gateways.
//
// +kubebuilder:object:root=true
type GatewayList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Gateway `json:"items"`
}

// AllNamespaces is the only element of unlisted if there are more namespaces than it may list. It means all namespaces.
const AllNamespaces = "*"

// FailuresTruncated reports whether the dataplane may have refused LoadBalancers of the namespace that are not in Failures.
func (s *GatewayStatus) FailuresTruncated(namespace string) bool {
	return unlistedHas(s.Unlisted, namespace)
}

// FailuresTruncated reports whether connections may fail to LoadBalancers of the namespace that are not in Failures.
func (t *GatewayTries) FailuresTruncated(namespace string) bool {
	return unlistedHas(t.Unlisted, namespace)
}

func unlistedHas(unlisted []string, namespace string) bool {
	return slices.Contains(unlisted, namespace) || slices.Contains(unlisted, AllNamespaces)
}
