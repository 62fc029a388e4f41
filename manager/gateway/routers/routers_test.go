package routers

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/bgp"
)

// bgpPeer returns a BGPPeer of a router that does not listen.
func bgpPeer(name, address string, change func(*v1alpha1.BGPPeerSpec)) *v1alpha1.BGPPeer {
	p := &v1alpha1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1000000, 0))},
		Spec: v1alpha1.BGPPeerSpec{Address: address, Port: 1, LocalASN: 64512, PeerASN: 64500, HoldTime: metav1.Duration{Duration: 90 * time.Second}}}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

// routersOf returns the Routers of the gateway g, which has the label zone=a.
func routersOf(t *testing.T, objects ...client.Object) *Routers {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	require.NoError(t, corev1.AddToScheme(scheme))
	hub := fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(objects,
		&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g", Labels: map[string]string{"zone": "a"}}})...).Build()
	speaker := bgp.NewSpeaker(bgp.Options{Name: "g", Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
	go speaker.Run(t.Context())
	r := New(Options{Gateway: "g", Speaker: speaker, Hub: hub, Secrets: hub, Namespace: "kubelb", Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, r.sync(t.Context()))
	return r
}

// messages returns the messages of the sessions, by BGPPeer.
func messages(r *Routers) map[string]string {
	out := map[string]string{}
	for _, s := range r.Sessions() {
		out[s.Peer] = s.Message
	}
	return out
}

func TestAnInvalidBGPPeerIsReportedWithTheReasonAndOthersWork(t *testing.T) {
	r := routersOf(t,
		bgpPeer("good", "127.0.0.1", nil),
		bgpPeer("same", "127.0.0.1", nil),
		bgpPeer("elsewhere", "127.0.0.2", func(s *v1alpha1.BGPPeerSpec) {
			s.GatewaySelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "b"}}
		}),
		bgpPeer("here", "127.0.0.3", func(s *v1alpha1.BGPPeerSpec) {
			s.GatewaySelector = &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "a"}}
		}),
		bgpPeer("locked", "127.0.0.4", func(s *v1alpha1.BGPPeerSpec) { s.PasswordSecret = "none" }),
		bgpPeer("empty", "127.0.0.5", func(s *v1alpha1.BGPPeerSpec) { s.PasswordSecret = "empty" }),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: "empty"}},
	)
	got := messages(r)
	require.NotContains(t, got, "elsewhere", "it does not select the gateway")
	require.Contains(t, got, "here")
	require.Contains(t, got, "good")
	require.Contains(t, got["same"], "spec.address: the older BGPPeer good names the same router")
	require.Contains(t, got["locked"], "spec.passwordSecret: Secret kubelb/none: ")
	require.Contains(t, got["empty"], `spec.passwordSecret: Secret kubelb/empty has no key "password"`)
	condition := Condition(r.Sessions(), true)
	require.Equal(t, "SessionDown", condition.Reason)
	require.Contains(t, condition.Message, "5 of 5 routers have no session")
	require.Equal(t, "NoPeer", Condition(nil, true).Reason)
	require.Equal(t, "Starting", Condition(nil, false).Reason, "the BGPPeers were not read yet")
	require.Equal(t, metav1.ConditionTrue, Condition([]v1alpha1.BGPSession{{State: v1alpha1.BGPEstablished}}, true).Status)
	lacks := Condition([]v1alpha1.BGPSession{{Peer: "tor", Address: "192.0.2.254", State: v1alpha1.BGPEstablished, Message: "IPv6 addresses are not announced to it: why"}}, true)
	require.Equal(t, metav1.ConditionFalse, lacks.Status)
	require.Equal(t, "SessionLacks", lacks.Reason)
	require.Equal(t, "1 of 1 sessions are incomplete: tor (192.0.2.254): IPv6 addresses are not announced to it: why", lacks.Message)
}

func TestABGPPeerIsConvertedForTheSpeaker(t *testing.T) {
	preference, hops := int64(250), int32(3)
	r := routersOf(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: "s"}, Data: map[string][]byte{"password": []byte("secret")}})
	p, err := r.peer(t.Context(), bgpPeer("all", "2001:db8::1", func(s *v1alpha1.BGPPeerSpec) {
		s.PasswordSecret, s.Communities, s.LocalPreference, s.MultihopTTL = "s", []string{"64512:1"}, &preference, &hops
		s.GracefulRestartTime = &metav1.Duration{Duration: 2 * time.Minute}
		s.BFD = &v1alpha1.BGPPeerBFD{IntervalMilliseconds: 300, Multiplier: 3}
	}))
	require.NoError(t, err)
	want := uint32(250)
	require.Equal(t, bgp.Peer{Name: "all", Address: netip.MustParseAddr("2001:db8::1"), Port: 1, LocalASN: 64512, PeerASN: 64500, Password: "secret",
		HoldTime: 90 * time.Second, Keepalive: 30 * time.Second, GracefulRestart: 2 * time.Minute, BFDInterval: 300 * time.Millisecond, BFDMultiplier: 3,
		MultihopTTL: 3, IPv6: true, Communities: []string{"64512:1"}, LocalPreference: &want}, p)
}

// Before the BGPPeers are read, nobody knows that there is none.
func TestRoutersAreNotReportedMissingBeforeTheBGPPeersAreRead(t *testing.T) {
	r := New(Options{Gateway: "g"})
	require.Empty(t, r.SilentReason(ipam.IPv4))
	looked := routersOf(t, bgpPeer("locked", "127.0.0.4", func(s *v1alpha1.BGPPeerSpec) { s.PasswordSecret = "none" }))
	require.Contains(t, looked.SilentReason(ipam.IPv4), "BGPPeer locked: spec.passwordSecret: Secret kubelb/none: ")
	require.NotContains(t, looked.SilentReason(ipam.IPv4), "no BGPPeer")
	require.Contains(t, routersOf(t).SilentReason(ipam.IPv6), "no BGPPeer names a router for this gateway")
}
