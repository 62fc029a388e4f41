package v1alpha1

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Gateway is a host where a manager moves packets. It is made by that manager, which writes its status.
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

// GatewaySpec is what operators tell a gateway; all else is configured where it runs.
type GatewaySpec struct {
	// Draining: the gateway answers for no address any more, and takes no new connections. Those that it has go on: other gateways
	// send their packets there. `kubelb drain` sets it.
	// +optional
	Draining bool `json:"draining,omitempty"`
}

// GatewayStatus is what the gateway does now.
type GatewayStatus struct {
	// Backend is the dataplane that moves the packets.
	// +optional
	Backend GatewayBackend `json:"backend,omitempty"`
	// AppliedResourceVersion: the dataplane holds every LoadBalancer up to this resourceVersion, but for those in
	// failures, some of the namespaces that are unlisted, and those of namespaces that are behind. Resource versions of one API
	// server are ordered (KEP-5504).
	// +optional
	AppliedResourceVersion string `json:"appliedResourceVersion,omitempty"`
	// AnnouncedResourceVersion: the same for the announcement of addresses.
	// +optional
	AnnouncedResourceVersion string `json:"announcedResourceVersion,omitempty"`
	// Behind are the namespaces with changes that the dataplane is still to be told of, while others' are not waited for.
	// +optional
	// +listType=map
	// +listMapKey=namespace
	// +kubebuilder:validation:MaxItems=1000
	Behind []GatewayBehind `json:"behind,omitempty"`
	// Generation is the generation of the model that the dataplane holds, with the epoch of the manager process.
	// +optional
	Generation string `json:"generation,omitempty"`
	// Frontends is the number of pairs of address and port that are served.
	// +optional
	Frontends int32 `json:"frontends"`
	// AnnouncedAddresses is the number of addresses that this gateway answers for.
	// +optional
	AnnouncedAddresses int32 `json:"announcedAddresses"`
	// HostAddresses are those of the gateway's host itself, on all its interfaces, the first 256 of them. No tenant may target them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=64
	HostAddresses []string `json:"hostAddresses,omitempty"`
	// Elects: of the gateways one answers for each address. Otherwise each announces all that its dataplane holds.
	// +optional
	Elects bool `json:"elects,omitempty"`
	// Candidates are the gateways among which, as this one sees it, that one is found.
	// +optional
	// +kubebuilder:validation:MaxItems=1000
	Candidates []string `json:"candidates,omitempty"`
	// WithoutIPv4 names the candidates that answer for no IPv4 address, since their interfaces do not carry IPv4.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	WithoutIPv4 []string `json:"withoutIPv4,omitempty"`
	// WithoutIPv6 names the candidates that answer for no IPv6 address, since their interfaces do not carry IPv6.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	WithoutIPv6 []string `json:"withoutIPv6,omitempty"`
	// BGPSessions are those with the routers that BGPPeer objects name, where addresses are announced by BGP.
	// +optional
	// +listType=map
	// +listMapKey=peer
	// +kubebuilder:validation:MaxItems=1000
	BGPSessions []BGPSession `json:"bgpSessions,omitempty"`
	// Silent are the families of whose addresses nobody on the network hears from this gateway, with the reason. An address of such a family is announced
	// by other gateways, or by none.
	// +optional
	// +listType=map
	// +listMapKey=family
	// +kubebuilder:validation:MaxItems=2
	Silent []GatewaySilence `json:"silent,omitempty"`
	// Tenants are what tenants use of their limits of connections at this gateway, of those that have such limits the first 1000.
	// +optional
	// +listType=map
	// +listMapKey=tenant
	// +kubebuilder:validation:MaxItems=1000
	Tenants []GatewayTenantUse `json:"tenants,omitempty"`
	// Failures are records that the dataplane could not take: of each LoadBalancer the first, of each tenant at most 20 LoadBalancers. Former
	// backends that could not be purged are there as well.
	// +optional
	// +kubebuilder:validation:MaxItems=1100
	Failures []GatewayFailure `json:"failures,omitempty"`
	// Unlisted are the namespaces with more refused LoadBalancers than failures names: any other LoadBalancer of such a namespace may be refused, too.
	// "*" stands for all namespaces, if there are more than 1000.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	Unlisted []string `json:"unlisted,omitempty"`
	// Conflicts are addresses that this gateway answers for and another host on the segment says are its own, up to 64 of them.
	// +optional
	// +listType=map
	// +listMapKey=address
	// +kubebuilder:validation:MaxItems=100
	Conflicts []AddressConflict `json:"conflicts,omitempty"`
	// Tries are the results of probing the TCP ports that this gateway answers for. Absent if the gateway does not probe.
	// +optional
	Tries *GatewayTries `json:"tries,omitempty"`
	// Conditions: Ready says whether the dataplane runs and holds what it should, BGPEstablished whether there is a session with every
	// router, Drained whether one that drains has let go of all addresses. AddressConflict is there while there are conflicts,
	// BackendBusy while the dataplane works on something for long, Served while nothing that it answers for is served, HeartbeatsRefused while other gateways on the segment are not believed, and HostKernel, HostModules, HostSysctls and others of that kind while the host lacks something: they say what, and how to mend it.
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
	// Notes say how it works on this host, such as whether known flows take a fast path.
	// +optional
	Notes []string `json:"notes,omitempty"`
}

// GatewayTries counts the TCP ports that a gateway answers for and can probe.
type GatewayTries struct {
	// Answered counts ports whose last try was answered.
	Answered int32 `json:"answered"`
	// Untried counts the other ports: not tried yet, or not often enough to tell.
	Untried int32 `json:"untried"`
	// Failing counts ports to which connections fail.
	Failing int32 `json:"failing"`
	// Problem is why none can be tried, or why answers are lost.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Problem string `json:"problem,omitempty"`
	// Failures has the first failing port of each LoadBalancer, and at most 20 LoadBalancers of each tenant. If no port of a
	// LoadBalancer is known to fail, it may have one that may fail: its message says so.
	// +optional
	// +kubebuilder:validation:MaxItems=1000
	Failures []GatewayFailure `json:"failures,omitempty"`
	// Unlisted has the namespaces with more failing LoadBalancers than failures has. "*" stands for all namespaces, if there are more than 1000.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1000
	Unlisted []string `json:"unlisted,omitempty"`
}

// GatewayBehind is a namespace whose LoadBalancers the dataplane holds up to another version than those of others.
type GatewayBehind struct {
	Namespace string `json:"namespace"`
	// ResourceVersion: the dataplane holds every LoadBalancer of the namespace up to this one, with the same exceptions.
	ResourceVersion string `json:"resourceVersion"`
}

// AddressConflict is an address that a host has which is no gateway.
type AddressConflict struct {
	Address string `json:"address"`
	// MAC is that host's, as it said last.
	MAC string `json:"mac"`
}

// GatewayTenantUse is what a tenant's busiest ports have at a gateway, to a twentieth of the limit.
type GatewayTenantUse struct {
	Tenant string `json:"tenant"`
	// ConnectionsPerPort is how many connections, and UDP flows, the port has that has the most of them.
	// +optional
	ConnectionsPerPort *int32 `json:"connectionsPerPort,omitempty"`
	// NewConnectionsPerSecondPerPort is how many began in a second at the port where the most did, as a mean of fifteen seconds.
	// +optional
	NewConnectionsPerSecondPerPort *int32 `json:"newConnectionsPerSecondPerPort,omitempty"`
}

// GatewaySilence names an address family that a gateway does not announce, and the reason.
type GatewaySilence struct {
	// +kubebuilder:validation:Enum=IPv4;IPv6
	Family corev1.IPFamily `json:"family"`
	// Message says why, and names the BGPPeers or interfaces concerned.
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message"`
}

// BGPSession is what has become of a BGPPeer at one gateway.
type BGPSession struct {
	// Peer is the name of the BGPPeer.
	Peer string `json:"peer"`
	// Address is the router's.
	Address string `json:"address"`
	// State is Established or Down.
	// +kubebuilder:validation:Enum=Established;Down
	State string `json:"state"`
	// BFD is Up or Down, where the BGPPeer asks for it.
	// +optional
	// +kubebuilder:validation:Enum=Up;Down
	BFD string `json:"bfd,omitempty"`
	// Since is when that began.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Families are the address families that the router is told of. Both sides have named them, and the gateway has a next hop of each.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=2
	Families []corev1.IPFamily `json:"families,omitempty"`
	// Message is why there is no session, and which side said so, or why the router is not told of a family that the BGPPeer names, or why BFD
	// cannot work on this host.
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
	// LoadBalancer is namespace/name of the object concerned; empty when the failure concerns a pool that several share.
	// +optional
	LoadBalancer string `json:"loadBalancer,omitempty"`
	// Record names the model's record.
	Record string `json:"record"`
	// Message is the dataplane's own reason.
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

// AllNamespaces is the only element of unlisted if there are more namespaces than it may list. It stands for every namespace.
const AllNamespaces = "*"

// FailuresTruncated tells whether the dataplane may have refused LoadBalancers of the namespace that Failures does not name.
func (s *GatewayStatus) FailuresTruncated(namespace string) bool {
	return unlistedHas(s.Unlisted, namespace)
}

// FailuresTruncated tells whether connections to LoadBalancers of the namespace may fail that Failures does not name.
func (t *GatewayTries) FailuresTruncated(namespace string) bool {
	return unlistedHas(t.Unlisted, namespace)
}

func unlistedHas(unlisted []string, namespace string) bool {
	return slices.Contains(unlisted, namespace) || slices.Contains(unlisted, AllNamespaces)
}
