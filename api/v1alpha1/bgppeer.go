package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BGPPeer is a router that gateways announce addresses to by BGP (RFC 4271). Nothing that the router offers is taken. How its sessions
// are is in the status of the Gateways.
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

// BGPPeerSpec says how gateways reach the router and what they tell it.
//
// +kubebuilder:validation:XValidation:rule="!has(self.keepaliveTime) || duration(self.keepaliveTime) < duration(self.holdTime)",message="spec.keepaliveTime: must be shorter than spec.holdTime; leave it out for a third of it"
// +kubebuilder:validation:XValidation:rule="!has(self.localPreference) || self.localASN == self.peerASN",message="spec.localPreference: is for routers of the own AS only (spec.peerASN equal to spec.localASN)"
// +kubebuilder:validation:XValidation:rule="!has(self.multihopTTL) || !has(self.bfd)",message="spec.bfd: is for routers on the same segment (RFC 5881); leave out spec.multihopTTL"
// +kubebuilder:validation:XValidation:rule="!has(self.multihopTTL) || !has(self.ttlSecurity) || !self.ttlSecurity",message="spec.ttlSecurity: is for routers on the same segment; leave out spec.multihopTTL"
type BGPPeerSpec struct {
	// Address is the router's, IPv4 or IPv6.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="spec.address: must be an IPv4 or IPv6 address"
	// +kubebuilder:validation:XValidation:rule="!isIP(self) || ip(self).isGlobalUnicast() || ip(self).isLoopback()",message="spec.address: must be an address that a router can have: link-local addresses, which need an interface, multicast and unspecified ones are refused"
	Address string `json:"address"`

	// Port is where the router listens.
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

	// PasswordSecret names a Secret in the manager's namespace whose key "password" signs the session's segments (TCP MD5, RFC 2385). Gateways may
	// read it if gateway.passwordSecrets of the chart names it, or this object was there when Helm installed or upgraded last.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PasswordSecret string `json:"passwordSecret,omitempty"`

	// HoldTime is how long the session lasts while nothing is heard of the other side, from 3s on.
	// +optional
	// +kubebuilder:default="90s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('3s') && duration(self) <= duration('18h')",message="spec.holdTime: use 3s to 18h (RFC 4271, section 4.2)"
	HoldTime metav1.Duration `json:"holdTime,omitempty"`

	// KeepaliveTime is how often something is said. Empty means a third of the hold time.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="spec.keepaliveTime: use 1s at least"
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`

	// ConnectTime is how long a gateway waits after a session was lost or could not be had before it tries again.
	// +optional
	// +kubebuilder:default="5s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('5m')",message="spec.connectTime: use 1s to 5m"
	ConnectTime metav1.Duration `json:"connectTime,omitempty"`

	// GracefulRestartTime is how long the router is to keep the routes of a gateway whose manager has crashed (RFC 4724), since its
	// dataplane works on without it. Empty: not at all. A gateway whose host has crashed gets packets for as long, too, unless bfd
	// is set; with it the router drops the routes of either.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('4095s')",message="spec.gracefulRestartTime: use 1s to 4095s (RFC 4724, section 3)"
	GracefulRestartTime *metav1.Duration `json:"gracefulRestartTime,omitempty"`

	// BFD has the two sides notice within less than a second that the other one is gone (RFC 5880). The router has to do it, too.
	// +optional
	BFD *BGPPeerBFD `json:"bfd,omitempty"`

	// MultihopTTL is for a router that is not on the gateways' segment: how many hops away it may be.
	// +optional
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=255
	MultihopTTL *int32 `json:"multihopTTL,omitempty"`

	// TTLSecurity takes packets from the segment only, by their TTL (GTSM, RFC 5082). The router has to do it, too.
	// +optional
	TTLSecurity bool `json:"ttlSecurity,omitempty"`

	// Families are those of the addresses that are announced. Empty means that of the router's address. For the other one the gateway
	// needs an address of that family on the interface that faces the router.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:Enum=IPv4;IPv6
	Families []corev1.IPFamily `json:"families,omitempty"`

	// Communities are put on every route: 64512:100 (RFC 1997), 64512:1:2 (RFC 8092), no-export, no-advertise, no-export-subconfed,
	// graceful-shutdown, blackhole.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:Pattern=`^([0-9]{1,5}:[0-9]{1,5}|[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}|no-export|no-advertise|no-export-subconfed|graceful-shutdown|blackhole)$`
	Communities []string `json:"communities,omitempty"`

	// LocalPreference of every route, for a router of the own AS.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	LocalPreference *int64 `json:"localPreference,omitempty"`

	// GatewaySelector chooses, by the labels of Gateway objects, which gateways have a session with the router. Empty means all that
	// announce by BGP.
	// +optional
	GatewaySelector *metav1.LabelSelector `json:"gatewaySelector,omitempty"`
}

// BGPPeerBFD are the timers of bidirectional forwarding detection.
type BGPPeerBFD struct {
	// IntervalMilliseconds is how often each side says something.
	// +optional
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=50
	// +kubebuilder:validation:Maximum=10000
	IntervalMilliseconds int32 `json:"intervalMilliseconds,omitempty"`
	// Multiplier is after how many intervals of silence the other side is gone.
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
