package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BGPPeer is a router to which gateways announce addresses by BGP (RFC 4271). Gateways ignore the routes of the router. The state of its
// sessions is in status.bgpSessions of each Gateway.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=lbpeer,categories=kubelb
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Peer-ASN",type=integer,JSONPath=`.spec.peerASN`
// +kubebuilder:printcolumn:name="Local-ASN",type=integer,JSONPath=`.spec.localASN`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPPeerSpec `json:"spec"`
}

// BGPPeerSpec says how gateways reach the router and what they announce to it.
//
// +kubebuilder:validation:XValidation:rule="!has(self.keepaliveTime) || duration(self.keepaliveTime) < duration(self.holdTime)",message="spec.keepaliveTime: must be shorter than spec.holdTime; leave it out for a third of spec.holdTime"
// +kubebuilder:validation:XValidation:rule="!has(self.localPreference) || self.localASN == self.peerASN",message="spec.localPreference: only for routers in the same AS (spec.peerASN equal to spec.localASN)"
// +kubebuilder:validation:XValidation:rule="!has(self.multihopTTL) || !has(self.bfd)",message="spec.bfd: only for routers on the same segment (RFC 5881); leave out spec.multihopTTL"
// +kubebuilder:validation:XValidation:rule="!has(self.multihopTTL) || !has(self.ttlSecurity) || !self.ttlSecurity",message="spec.ttlSecurity: only for routers on the same segment; leave out spec.multihopTTL"
type BGPPeerSpec struct {
	// Address is the address of the router, IPv4 or IPv6.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="spec.address: must be an IPv4 or IPv6 address"
	// +kubebuilder:validation:XValidation:rule="!isIP(self) || ip(self).isGlobalUnicast() || ip(self).isLoopback()",message="spec.address: must be an address that a router can have: link-local, multicast and unspecified addresses are refused"
	Address string `json:"address"`

	// Port is the port at which the router listens.
	// +optional
	// +kubebuilder:default=179
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`

	// LocalASN is the gateways' AS number (RFC 6793).
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	LocalASN int64 `json:"localASN"`

	// PeerASN is the router's AS number.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	PeerASN int64 `json:"peerASN"`

	// PasswordSecret names a Secret in the manager's namespace. The password under its key "password" signs the TCP segments of the session (TCP MD5,
	// RFC 2385). Gateways may read the Secret if gateway.passwordSecrets of the chart names it, or if this BGPPeer existed at the last
	// installation or upgrade of the chart.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PasswordSecret string `json:"passwordSecret,omitempty"`

	// HoldTime is for how long the session lasts while one side hears nothing of the other. At least 3s.
	// +optional
	// +kubebuilder:default="90s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('3s') && duration(self) <= duration('18h')",message="spec.holdTime: use 3s to 18h (RFC 4271, section 4.2)"
	HoldTime metav1.Duration `json:"holdTime,omitempty"`

	// KeepaliveTime is the interval between keepalive messages. Empty means a third of the hold time.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="spec.keepaliveTime: use at least 1s"
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`

	// ConnectTime is for how long a gateway waits before it connects again after a session has failed.
	// +optional
	// +kubebuilder:default="5s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('5m')",message="spec.connectTime: use 1s to 5m"
	ConnectTime metav1.Duration `json:"connectTime,omitempty"`

	// GracefulRestartTime is for how long the router keeps the routes of a gateway whose manager process has crashed (RFC 4724): the
	// dataplane goes on without that process. Empty means that the router drops the routes at once. Without bfd, the router also keeps
	// the routes of a gateway whose host has crashed. With bfd, it drops the routes in both cases.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('4095s')",message="spec.gracefulRestartTime: use 1s to 4095s (RFC 4724, section 3)"
	GracefulRestartTime *metav1.Duration `json:"gracefulRestartTime,omitempty"`

	// BFD detects within less than a second that the other side is gone (RFC 5880). The router must be configured for it, too.
	// +optional
	BFD *BGPPeerBFD `json:"bfd,omitempty"`

	// MultihopTTL is for a router that is not on the gateways' segment: the greatest number of hops to it.
	// +optional
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=255
	MultihopTTL *int32 `json:"multihopTTL,omitempty"`

	// TTLSecurity accepts only packets from the segment, by their TTL (GTSM, RFC 5082). The router must be configured for it, too.
	// +optional
	TTLSecurity bool `json:"ttlSecurity,omitempty"`

	// Families are the families of the announced addresses. Empty means the family of the router's address. For the other family, the
	// gateway needs an address of that family on its interface to the router.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:Enum=IPv4;IPv6
	Families []corev1.IPFamily `json:"families,omitempty"`

	// Communities of each route: 64512:100 (RFC 1997), 64512:1:2 (RFC 8092), no-export, no-advertise, no-export-subconfed,
	// graceful-shutdown, blackhole.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:Pattern=`^([0-9]{1,5}:[0-9]{1,5}|[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}|no-export|no-advertise|no-export-subconfed|graceful-shutdown|blackhole)$`
	Communities []string `json:"communities,omitempty"`

	// LocalPreference of each route, for a router in the same AS.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	LocalPreference *int64 `json:"localPreference,omitempty"`

	// GatewaySelector selects by the labels of Gateway objects which gateways have a session with the router. Empty means all gateways
	// that announce by BGP.
	// +optional
	GatewaySelector *metav1.LabelSelector `json:"gatewaySelector,omitempty"`
}

// BGPPeerBFD are the timers of bidirectional forwarding detection.
type BGPPeerBFD struct {
	// IntervalMilliseconds is the interval between packets of each side.
	// +optional
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=50
	// +kubebuilder:validation:Maximum=10000
	IntervalMilliseconds int32 `json:"intervalMilliseconds,omitempty"`
	// Multiplier is the number of intervals without a packet after which the other side is gone.
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=50
	Multiplier int32 `json:"multiplier,omitempty"`
}

// BGPPeerList is a list of BGPPeers.
//
// +kubebuilder:object:root=true
type BGPPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPPeer `json:"items"`
}
