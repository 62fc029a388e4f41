package routers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	r, _ := routersWith(t, objects...)
	return r
}

// secrets reads Secrets. If err is set, it reads nothing, and returns err.
type secrets struct {
	client.Client
	err error
}

func (s *secrets) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	if s.err != nil {
		return s.err
	}
	return s.Client.Get(ctx, key, o, options...)
}

// routersWith is routersOf. The Secrets can be changed, and made unreadable.
func routersWith(t *testing.T, objects ...client.Object) (*Routers, *secrets) {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	require.NoError(t, corev1.AddToScheme(scheme))
	hub := fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(objects,
		&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g", Labels: map[string]string{"zone": "a"}}})...).Build()
	speaker := bgp.NewSpeaker(bgp.Options{Name: "g", Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
	go speaker.Run(t.Context())
	reader := &secrets{Client: hub}
	r := New(Options{Gateway: "g", Speaker: speaker, Hub: hub, Secrets: reader, Namespace: "kubelb", Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, r.sync(t.Context()))
	return r, reader
}

func passwordSecret(password string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: "tor"}, Data: map[string][]byte{"password": []byte(password)}}
}

// withPassword makes the BGPPeer use the passwordSecret.
func withPassword(s *v1alpha1.BGPPeerSpec) { s.PasswordSecret = "tor" }

var (
	errForbidden = apierrors.NewForbidden(corev1.Resource("secrets"), "tor", errors.New("no rule"))
	errTimeout   = fmt.Errorf("read: %w", context.DeadlineExceeded)
)

// passwords returns the passwords with which the speaker keeps sessions, by BGPPeer.
func passwords(r *Routers) map[string]string {
	out := map[string]string{}
	for _, s := range r.options.Speaker.Sessions() {
		out[s.Peer.Name] = s.Peer.Password
	}
	return out
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
	p, _, err := r.peer(t.Context(), bgpPeer("all", "2001:db8::1", func(s *v1alpha1.BGPPeerSpec) {
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

func TestASessionWhosePasswordCannotBeReadAgainGoesOnAndSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		says string
	}{
		"the right is gone":   {errForbidden, "spec.passwordSecret: gateways may not read Secret kubelb/tor: add its name to gateway.passwordSecrets of the chart, and upgrade the release"},
		"the API is too slow": {errTimeout, "spec.passwordSecret: Secret kubelb/tor: read: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			r, reader := routersWith(t, passwordSecret("old"), bgpPeer("tor", "127.0.0.2", withPassword), bgpPeer("open", "127.0.0.3", nil))
			require.NotContains(t, messages(r)["tor"], "passwordSecret")
			reader.err = c.err
			require.NoError(t, r.sync(t.Context()))
			require.Equal(t, map[string]string{"tor": "old", "open": ""}, passwords(r))
			require.Contains(t, messages(r)["tor"], c.says+"; the session keeps the password that was read before")
			require.NotContains(t, messages(r)["open"], "passwordSecret")

			reader.err = nil
			require.NoError(t, r.sync(t.Context()))
			require.NotContains(t, messages(r)["tor"], "passwordSecret", "it was read again")
			require.NoError(t, reader.Update(t.Context(), passwordSecret("new")))
			password, unread, err := r.password(t.Context(), "tor")
			require.NoError(t, errors.Join(unread, err))
			require.Equal(t, "new", password)
		})
	}
}

func TestASessionDoesNotBeginWithAPasswordThatWasNeverRead(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		says string
	}{
		"no right":  {errForbidden, "spec.passwordSecret: gateways may not read Secret kubelb/tor"},
		"no answer": {errTimeout, "spec.passwordSecret: Secret kubelb/tor: read: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			r, reader := routersWith(t, passwordSecret("old"))
			reader.err = c.err
			require.NoError(t, reader.Create(t.Context(), bgpPeer("tor", "127.0.0.2", withPassword)))
			require.NoError(t, r.sync(t.Context()))
			require.Empty(t, passwords(r))
			require.Contains(t, messages(r)["tor"], c.says)
			require.NotContains(t, messages(r)["tor"], "keeps the password")
		})
	}
}

// An error of the API after the deletion of a password does not bring the password back.
func TestADeletedPasswordEndsTheSessionAndIsForgotten(t *testing.T) {
	for name, remove := range map[string]func(*testing.T, client.Client){
		"the Secret is deleted":   func(t *testing.T, c client.Client) { require.NoError(t, c.Delete(t.Context(), passwordSecret(""))) },
		"the password is emptied": func(t *testing.T, c client.Client) { require.NoError(t, c.Update(t.Context(), passwordSecret(""))) },
	} {
		t.Run(name, func(t *testing.T) {
			r, reader := routersWith(t, passwordSecret("old"), bgpPeer("tor", "127.0.0.2", withPassword))
			require.Equal(t, map[string]string{"tor": "old"}, passwords(r))
			remove(t, reader)
			require.NoError(t, r.sync(t.Context()))
			require.Empty(t, passwords(r))
			require.Contains(t, messages(r)["tor"], "spec.passwordSecret: Secret kubelb/tor")
			reader.err = errTimeout
			require.NoError(t, r.sync(t.Context()))
			require.Empty(t, passwords(r), "the former password was deleted")
		})
	}
}

func TestTheConditionNamesASessionWhosePasswordCannotBeReadAgain(t *testing.T) {
	s := bgp.Session{Peer: bgp.Peer{Name: "tor", Address: netip.MustParseAddr("192.0.2.254")}, Established: true, Reason: "why it was down before"}
	condition := Condition([]v1alpha1.BGPSession{toSession(s, "spec.passwordSecret: why")}, true)
	require.Equal(t, metav1.ConditionFalse, condition.Status)
	require.Equal(t, "SessionLacks", condition.Reason)
	require.Equal(t, "1 of 1 sessions are incomplete: tor (192.0.2.254): spec.passwordSecret: why", condition.Message)
	require.Equal(t, metav1.ConditionTrue, Condition([]v1alpha1.BGPSession{toSession(s, "")}, true).Status)
}
