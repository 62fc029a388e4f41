package routers

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/bgp"
)

// countedHub counts the reads of all BGPPeers.
type countedHub struct {
	client.Reader
	lists           atomic.Int32
	listErr, getErr error
}

func (h *countedHub) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	h.lists.Add(1)
	if h.listErr != nil {
		return h.listErr
	}
	return h.Reader.List(ctx, list, options...)
}

func (h *countedHub) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	if h.getErr != nil {
		return h.getErr
	}
	return h.Reader.Get(ctx, key, o, options...)
}

// emptyHub is a hub without objects.
func emptyHub(t *testing.T) *countedHub {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	return &countedHub{Reader: fake.NewClientBuilder().WithScheme(scheme).Build()}
}

// routersAt returns Routers of the hub. changes counts calls of Changed.
func routersAt(hub *countedHub, log *slog.Logger) (r *Routers, changes *atomic.Int32) {
	changes = &atomic.Int32{}
	return New(Options{Gateway: "g", Speaker: bgp.NewSpeaker(bgp.Options{Name: "g", Changed: func() {}, Log: log}), Hub: hub, Changed: func() { changes.Add(1) }, Log: log}), changes
}

func TestSessionsBeginOnceTheyAreAllowedAndAreUpdatedThenAndNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := emptyHub(t)
		r, changes := routersAt(hub, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		reads := func(want int32, why string) {
			t.Helper()
			synctest.Wait()
			require.Equal(t, want, hub.lists.Load(), why)
			require.Equal(t, want, changes.Load(), why)
		}
		time.Sleep(time.Hour)
		reads(0, "not everything is announced yet, and routers would drop routes")
		require.False(t, r.HasLoaded())
		r.AllowSessions()
		r.AllowSessions()
		reads(1, "they are allowed")
		require.True(t, r.HasLoaded())
		r.Refresh()
		reads(2, "an object has changed")
		time.Sleep(refreshInterval)
		reads(3, "a password may have changed")
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestAGatewayMayEndBeforeSessionsAreAllowed(t *testing.T) {
	hub := emptyHub(t)
	r, _ := routersAt(hub, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, r.Run(ctx))
	require.Zero(t, hub.lists.Load())
}

// Refresh is called by the gateway's loop, which may not stand still.
func TestAnyNumberOfRefreshesIsOneRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := emptyHub(t)
		r, _ := routersAt(hub, slog.New(slog.DiscardHandler))
		for range 10 {
			r.Refresh()
		}
		r.AllowSessions()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		synctest.Wait()
		require.EqualValues(t, 2, hub.lists.Load(), "the first read, and one for all refreshes")
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestAfterAnErrorOfTheHubNothingIsClaimedAndItIsReadAgain(t *testing.T) {
	failed := errors.New("no answer of the hub")
	for name, hub := range map[string]*countedHub{"the BGPPeers": {listErr: failed}, "the own Gateway": {getErr: failed}} {
		t.Run(name, func(t *testing.T) {
			hub.Reader = emptyHub(t).Reader
			synctest.Test(t, func(t *testing.T) {
				var logged bytes.Buffer
				r, changes := routersAt(hub, slog.New(slog.NewTextHandler(&logged, nil)))
				r.AllowSessions()
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- r.Run(ctx) }()
				time.Sleep(refreshInterval)
				synctest.Wait()
				cancel()
				require.NoError(t, <-ended)
				require.EqualValues(t, 2, hub.lists.Load())
				require.EqualValues(t, 2, changes.Load())
				require.False(t, r.HasLoaded())
				require.Equal(t, "Starting", Condition(r.Sessions(), r.HasLoaded()).Reason)
				require.Contains(t, logged.String(), failed.Error())
			})
		})
	}
}

func TestWhatABGPPeerLeavesOutHasADefault(t *testing.T) {
	r := routersOf(t)
	hops := int32(1000)
	for name, c := range map[string]struct {
		address string
		change  func(*v1alpha1.BGPPeerSpec)
		is      func(*testing.T, bgp.Peer)
	}{
		"the family is that of the address": {"192.0.2.1", nil, func(t *testing.T, p bgp.Peer) { require.True(t, p.IPv4 && !p.IPv6) }},
		"an IPv4 address in IPv6 notation": {"::ffff:192.0.2.1", nil, func(t *testing.T, p bgp.Peer) {
			require.Equal(t, netip.MustParseAddr("192.0.2.1"), p.Address)
			require.True(t, p.IPv4 && !p.IPv6)
		}},
		"families that are named":                 {"192.0.2.1", func(s *v1alpha1.BGPPeerSpec) { s.Families = []corev1.IPFamily{corev1.IPv6Protocol} }, func(t *testing.T, p bgp.Peer) { require.True(t, !p.IPv4 && p.IPv6) }},
		"keepalives are a third of the hold time": {"192.0.2.1", nil, func(t *testing.T, p bgp.Peer) { require.Equal(t, 30*time.Second, p.Keepalive) }},
		"keepalives that are set":                 {"192.0.2.1", func(s *v1alpha1.BGPPeerSpec) { s.KeepaliveTime = &metav1.Duration{Duration: 7 * time.Second} }, func(t *testing.T, p bgp.Peer) { require.Equal(t, 7*time.Second, p.Keepalive) }},
		"neither BFD nor graceful restart nor hops": {"192.0.2.1", nil, func(t *testing.T, p bgp.Peer) {
			require.Zero(t, p.BFDInterval)
			require.Zero(t, p.GracefulRestart)
			require.Zero(t, p.MultihopTTL)
			require.Nil(t, p.LocalPreference)
		}},
		"more hops than there can be": {"192.0.2.1", func(s *v1alpha1.BGPPeerSpec) { s.MultihopTTL = &hops }, func(t *testing.T, p bgp.Peer) { require.EqualValues(t, 255, p.MultihopTTL) }},
	} {
		t.Run(name, func(t *testing.T) {
			p, unread, err := r.peer(t.Context(), bgpPeer("tor", c.address, c.change))
			require.NoError(t, errors.Join(unread, err))
			c.is(t, p)
		})
	}
}

func TestAFieldThatCannotBeUsedIsNamed(t *testing.T) {
	r := routersOf(t,
		bgpPeer("nowhere", "router.example.com", nil),
		bgpPeer("selective", "127.0.0.2", func(s *v1alpha1.BGPPeerSpec) {
			s.GatewaySelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "zone", Operator: "Resembles"}}}
		}))
	require.Contains(t, messages(r)["nowhere"], "spec.address: ")
	require.Contains(t, messages(r)["selective"], "spec.gatewaySelector: ")
	require.Empty(t, r.options.Speaker.Sessions())
}

func TestASessionIsShownWithAllThatItLacks(t *testing.T) {
	began := time.Date(2026, 11, 30, 12, 0, 0, 999, time.UTC)
	peer := bgp.Peer{Name: "tor", Address: netip.MustParseAddr("192.0.2.254"), IPv4: true}
	fast := peer
	fast.BFDInterval = 300 * time.Millisecond
	unoffered := "IPv4 addresses are not announced to it: the router does not offer IPv4 in its OPEN: enable IPv4 for this neighbour at the router"
	for name, c := range map[string]struct {
		session    bgp.Session
		stale      string
		state, bfd string
		lacks      string
	}{
		"down":                       {bgp.Session{Peer: peer, Reason: "hold timer expired"}, "", v1alpha1.BGPDown, "", "hold timer expired"},
		"down, for no known reason":  {bgp.Session{Peer: peer}, "", v1alpha1.BGPDown, "", ""},
		"down, with an old password": {bgp.Session{Peer: peer, Reason: "no answer"}, "spec.passwordSecret: why", v1alpha1.BGPDown, "", "no answer; spec.passwordSecret: why"},
		"without a wanted family":    {bgp.Session{Peer: peer, Established: true, Reason: "hold timer expired"}, "", v1alpha1.BGPEstablished, "", unoffered},
		"BFD works":                  {bgp.Session{Peer: fast, Detected: true}, "", v1alpha1.BGPDown, "Up", ""},
		"BFD cannot work":            {bgp.Session{Peer: fast, Established: true, Undetected: "port 3784 is in use"}, "", v1alpha1.BGPEstablished, "Down", unoffered + "; port 3784 is in use"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Nil(t, toSession(c.session, "").Since, "it was never established")
			c.session.Since = began
			got := toSession(c.session, c.stale)
			require.Equal(t, "tor", got.Peer)
			require.Equal(t, "192.0.2.254", got.Address)
			require.Equal(t, c.state, got.State)
			require.Equal(t, c.bfd, got.BFD)
			require.Equal(t, c.lacks, got.Message)
			require.Equal(t, began.Truncate(time.Second), got.Since.UTC(), "the API keeps whole seconds")
		})
	}
}

func TestTheConditionNamesSessionsThatAreDownBeforeThoseThatLackSomething(t *testing.T) {
	up, lacks, down := v1alpha1.BGPSession{Peer: "a", State: v1alpha1.BGPEstablished}, v1alpha1.BGPSession{Peer: "b", Address: "192.0.2.2", State: v1alpha1.BGPEstablished, Message: "why"}, v1alpha1.BGPSession{Peer: "c", Address: "192.0.2.3", State: v1alpha1.BGPDown}
	c := Condition([]v1alpha1.BGPSession{up, lacks, down}, true)
	require.Equal(t, "SessionDown", c.Reason)
	require.Equal(t, "1 of 3 routers have no session: c (192.0.2.3)", c.Message, "without a colon if the reason is not known")
	require.Equal(t, "SessionLacks", Condition([]v1alpha1.BGPSession{up, lacks}, true).Reason)
	require.Equal(t, "Established", Condition([]v1alpha1.BGPSession{up}, true).Reason)
}
