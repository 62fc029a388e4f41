package membership

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/clock"
)

// memberOf is an idle member that is connected to the server. Its Lease lasts longer than a test, also on a busy host.
func (s *server) memberOf(name, process string) *Member {
	m := idleMember(name)
	m.options.Duration = time.Minute
	m.identity, m.leases, m.renewNow = name+"/"+process, &connection{server: s}, make(chan struct{}, 1)
	return m
}

func TestALeaseTellsWhenItWasRenewedAndWhetherItIsHeld(t *testing.T) {
	now, holder, nobody := time.Unix(1000, 0), "a/1", ""
	renewed := metav1.NewMicroTime(now.Add(-7 * time.Second))
	for name, c := range map[string]struct {
		holder          *string
		renewed         *metav1.MicroTime
		ago             time.Duration
		released, known bool
	}{
		"held":             {&holder, &renewed, 7 * time.Second, false, true},
		"released":         {&nobody, &renewed, 7 * time.Second, true, true},
		"without a holder": {nil, &renewed, 7 * time.Second, true, true},
		"never renewed":    {&holder, nil, 0, false, false},
	} {
		ago, released, known := LastRenewal(&coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: c.holder, RenewTime: c.renewed}}, now)
		require.Equal(t, c.ago, ago, name)
		require.Equal(t, [2]bool{c.released, c.known}, [2]bool{released, known}, name)
	}
}

func TestTheGreatestAgeOfARenewalIsTheDurationAndTheTimeAfterIt(t *testing.T) {
	seconds := func(n int32) *coordinationv1.Lease {
		return &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: &n}}
	}
	require.Equal(t, SilentAfter+2*time.Second, MaxRenewalAge(seconds(2), SilentAfter))
	require.Equal(t, SilentAfter, MaxRenewalAge(&coordinationv1.Lease{}, SilentAfter))
	require.Equal(t, SilentAfter+MaxDuration, MaxRenewalAge(seconds(1<<31-1), SilentAfter), "nobody waits for years")
}

func TestFamiliesAreSilentOneByOne(t *testing.T) {
	require.False(t, SilentFamilies{}.Has(ipam.IPv4) || SilentFamilies{}.Has(ipam.IPv6))
	require.True(t, SilentFamilies{IPv4: true}.Has(ipam.IPv4))
	require.False(t, SilentFamilies{IPv4: true}.Has(ipam.IPv6))
	require.True(t, SilentFamilies{IPv6: true}.Has(ipam.IPv6))
	require.False(t, SilentFamilies{IPv6: true}.Has(ipam.IPv4))
}

func TestAPeerThatDrainsOrIsGoneDoesNotStay(t *testing.T) {
	require.True(t, Peer{Active: true}.StaysActive())
	require.False(t, Peer{Active: true, Draining: true}.StaysActive())
	require.False(t, Peer{}.StaysActive())
}

func TestEachPublishedFieldIsSentAtOnceWhenItChanges(t *testing.T) {
	m := newServer().memberOf("a", "1")
	sent := func(p Published) bool {
		m.Publish(p)
		select {
		case <-m.renewNow:
			return true
		default:
			return false
		}
	}
	var p Published
	require.False(t, sent(p), "nothing has changed")
	for name, change := range map[string]func(){
		"candidates": func() { p.Candidates = []string{"a"} }, "families": func() { p.WithoutIPv6 = []string{"a"} }, "the configuration": func() { p.Configuration = "c" },
		"candidate": func() { p.Candidate = true }, "draining": func() { p.Draining = true }, "taking over": func() { p.CanTakeOver = true }, "silence": func() { p.IPv4 = true },
		"addresses": func() { p.RedirectAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
	} {
		change()
		require.True(t, sent(p), name)
		require.False(t, sent(p), name)
	}
	p.Candidate = false
	m.Publish(p)
	p.Candidate = true
	require.True(t, sent(p), "two changes before a renewal need only one")
}

func TestAMemberWritesItsLeaseWithAllThatOthersRead(t *testing.T) {
	s := newServer()
	m := s.memberOf("a", "1")
	require.False(t, m.HoldsLease() || m.ReachesAPI())
	m.Publish(Published{View: election.View{Candidates: []string{"a"}}, Candidate: true})
	m.SetWriteError("status.failures: too many")
	require.NoError(t, m.renew(t.Context()))
	require.True(t, m.HoldsLease() && m.ReachesAPI())
	number, holds := m.LeaseNumber()
	require.EqualValues(t, 1, number)
	require.True(t, holds)
	lease := s.leases["a"]
	require.Equal(t, map[string]string{Label: "a"}, lease.Labels)
	require.Equal(t, "a/1", *lease.Spec.HolderIdentity)
	require.EqualValues(t, 60, *lease.Spec.LeaseDurationSeconds)
	require.Equal(t, lease.Spec.AcquireTime, lease.Spec.RenewTime)
	require.JSONEq(t, `{"candidates":["a"],"candidate":true}`, lease.Annotations[viewAnnotation])
	require.Equal(t, "status.failures: too many", WriteError(&lease))
	acquired := lease.Spec.AcquireTime
	m.SetWriteError("")
	require.NoError(t, m.renew(t.Context()))
	lease = s.leases["a"]
	require.Empty(t, WriteError(&lease))
	require.Equal(t, acquired, lease.Spec.AcquireTime, "it holds the same Lease")
	number, _ = m.LeaseNumber()
	require.EqualValues(t, 1, number)
}

func TestAViewIsPublishedOnceThePeersWereReadAfterIt(t *testing.T) {
	s := newServer()
	m, view := s.memberOf("a", "1"), election.View{Candidates: []string{"a"}}
	m.Publish(Published{View: view})
	require.False(t, m.IsPublished(view))
	require.NoError(t, m.renew(t.Context()))
	require.False(t, m.IsPublished(view), "a peer may have published another one meanwhile")
	_, _, known := m.ActivePeers()
	require.False(t, known)
	require.NoError(t, m.readPeers(t.Context()))
	require.True(t, m.IsPublished(view))
	require.False(t, m.IsPublished(election.View{}))
	require.NoError(t, m.renew(t.Context()))
	require.False(t, m.IsPublished(view), "after each renewal they are read again")
}

func TestALeaseThatAnotherWroteIsReadAgainBeforeItIsWritten(t *testing.T) {
	s := newServer()
	m := s.memberOf("a", "1")
	require.NoError(t, m.renew(t.Context()))
	stored := s.leases["a"]
	stored.Labels["operator"] = "was here"
	stored.ResourceVersion = "9999"
	s.leases["a"] = stored
	require.ErrorContains(t, m.renew(t.Context()), "another version")
	require.Nil(t, m.lease)
	require.NoError(t, m.renew(t.Context()))
	require.Equal(t, "was here", s.leases["a"].Labels["operator"])
}

func TestALeaseThatNobodyHoldsIsTakenOverAtOnce(t *testing.T) {
	nobody := ""
	for name, holder := range map[string]*string{"released": &nobody, "without a holder": nil} {
		s := newServer()
		s.leases["a"] = coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "7"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: holder}}
		m := s.memberOf("a", "2")
		require.NoError(t, m.renew(t.Context()), name)
		require.True(t, m.HoldsLease(), name)
		require.Equal(t, "a/2", *s.leases["a"].Spec.HolderIdentity)
	}
}

func TestTheWaitForAnotherProcessIsLoggedOnce(t *testing.T) {
	s := newServer()
	require.NoError(t, s.memberOf("a", "1").renew(t.Context()))
	var logged bytes.Buffer
	m := s.memberOf("a", "2")
	m.options.Log = slog.New(slog.NewTextHandler(&logged, nil))
	for range 3 {
		require.NoError(t, m.renew(t.Context()))
		require.False(t, m.HoldsLease())
	}
	require.Equal(t, 1, strings.Count(logged.String(), "another process holds this gateway's Lease; wait until that expires"))
	require.Contains(t, logged.String(), "holder=a/1")
}

func TestALeaseThatIsReleasedSaysWhatStays(t *testing.T) {
	at := []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	for stays, want := range map[bool]string{true: `["192.0.2.2"]`, false: ""} {
		s := newServer()
		m := s.memberOf("a", "1")
		m.options.DataplaneStays = stays
		require.NoError(t, m.release(), "it has no Lease yet")
		require.Empty(t, s.leases)
		m.Publish(Published{Candidate: true, RedirectAddresses: at})
		require.NoError(t, m.renew(t.Context()))
		require.NoError(t, m.release())
		require.False(t, m.HoldsLease())
		lease := s.leases["a"]
		require.Empty(t, *lease.Spec.HolderIdentity)
		require.Equal(t, want != "", strings.Contains(lease.Annotations[viewAnnotation], `"reached":`+want))
		p, err := parsePublished(lease.Annotations[viewAnnotation])
		require.NoError(t, err)
		require.True(t, p.Draining)
		require.False(t, p.Candidate)
		require.Equal(t, at, m.wanted.RedirectAddresses, "the member itself still wants them")
	}
}

func TestALeaseThatSomebodyElseHasByNowIsNotReleased(t *testing.T) {
	s := newServer()
	m := s.memberOf("a", "1")
	require.NoError(t, m.renew(t.Context()))
	stored := s.leases["a"]
	stored.ResourceVersion = "9999"
	s.leases["a"] = stored
	require.ErrorContains(t, m.release(), "release the gateway's Lease: ")
	require.Equal(t, "a/1", *s.leases["a"].Spec.HolderIdentity)
}

func TestAPeerIsForgottenAfterItsLeaseWasDeletedAndHasExpired(t *testing.T) {
	s := newServer()
	m, peer := s.memberOf("a", "1"), s.memberOf("b", "1")
	require.NoError(t, errors.Join(m.renew(t.Context()), peer.renew(t.Context()), m.readPeers(t.Context())))
	require.Len(t, m.AllPeers(), 1)
	delete(s.leases, "b")
	require.NoError(t, m.readPeers(t.Context()))
	require.Len(t, m.AllPeers(), 1, "it may still run")
	m.peers["b"].expires = clock.Now()
	require.NoError(t, m.readPeers(t.Context()))
	require.Empty(t, m.AllPeers())
}

func TestAnInvalidViewOfAPeerIsLoggedAndCountsAsNoCandidate(t *testing.T) {
	var logged bytes.Buffer
	m := idleMember("a")
	m.options.Log = slog.New(slog.NewTextHandler(&logged, nil))
	m.updatePeer("b", leaseWithView(`{"candidates":["b"],"candidate":"yes"}`, 1))
	peers, candidates, _ := m.ActivePeers()
	require.Len(t, peers, 1, "it runs")
	require.Empty(t, candidates)
	require.Contains(t, logged.String(), "the Lease of a gateway is invalid")
	before := logged.Len()
	m.updatePeer("b", leaseWithView(`{"candidates":["b"],"candidate":"yes"}`, 1))
	require.Equal(t, before, logged.Len(), "the same Lease is parsed once")
}

func TestTheLastErrorNamesWhatFailedUntilItSucceeds(t *testing.T) {
	s := newServer()
	m, conn, stop := s.member(t, "a", "1")
	within(t, soon, m.HoldsLease, "the Lease")
	conn.cut.Store(true)
	within(t, soon, func() bool { return m.LastError() != nil }, "an error")
	require.Regexp(t, "^(renew the gateway's Lease|read the gateways' Leases): context deadline exceeded", m.LastError().Error())
	conn.cut.Store(false)
	within(t, soon, func() bool { return m.LastError() == nil }, "a success")
	stop()
}

func TestAMembersConnectionsAreItsOwn(t *testing.T) {
	config := &rest.Config{Host: "https://hub.example", QPS: 20}
	m, err := New(config, "kubelb", Options{Name: "a", Duration: DefaultDuration})
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(m.identity, "a/") && len(m.identity) > 10, m.identity)
	other, err := New(config, "kubelb", Options{Name: "a", Duration: DefaultDuration})
	require.NoError(t, err)
	require.NotEqual(t, m.identity, other.identity, "two processes of one name differ")
	require.Empty(t, config.NextProtos, "the caller's settings have not changed")
	require.EqualValues(t, 20, config.QPS)
	_, err = New(&rest.Config{Host: "://"}, "kubelb", Options{Name: "a"})
	require.ErrorContains(t, err, "client for Leases: ")
}

func TestTheKeyOfHeartbeatsIsCreatedOnce(t *testing.T) {
	hub, log := fake.NewClientBuilder().Build(), slog.New(slog.DiscardHandler)
	read := func() []byte {
		var secret corev1.Secret
		require.NoError(t, hub.Get(t.Context(), client.ObjectKey{Namespace: "kubelb", Name: KeySecret}, &secret))
		return secret.Data[keyField]
	}
	require.NoError(t, EnsureKey(t.Context(), hub, "kubelb", log))
	first := read()
	require.Len(t, first, keySize)
	require.NotEqual(t, make([]byte, keySize), first)
	require.NoError(t, EnsureKey(t.Context(), hub, "kubelb", log))
	require.Equal(t, first, read(), "another controller has created it")
}

func TestTheKeyOfHeartbeatsIsTriedAgainUntilItIsCreated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		tries := 0
		hub := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if tries++; tries < 3 {
				return errors.New("the hub is away")
			}
			return c.Create(ctx, o, opts...)
		}}).Build()
		began := time.Now()
		require.NoError(t, EnsureKey(t.Context(), hub, "kubelb", slog.New(slog.NewTextHandler(&logged, nil))))
		require.Equal(t, 3, tries)
		require.Equal(t, 10*keyRetry, time.Since(began))
		require.Equal(t, 2, strings.Count(logged.String(), "create Secret kubelb/kubelb-gateways, the key of the gateways' heartbeats: the hub is away"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		tries = -100
		require.NoError(t, EnsureKey(ctx, hub, "kubelb", slog.New(slog.DiscardHandler)), "it gives up with ctx")
	})
}

func TestAGatewayWaitsForTheKeyUntilTheControllersHaveCreatedIt(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	synctest.Test(t, func(t *testing.T) {
		hub := fake.NewClientBuilder().Build()
		go func() {
			time.Sleep(7*keyRetry - keyRetry/2)
			require.NoError(t, hub.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: KeySecret}, Data: map[string][]byte{keyField: bytes.Repeat([]byte{3}, keySize)}}))
		}()
		began := time.Now()
		require.Equal(t, bytes.Repeat([]byte{3}, keySize), WaitForKey(t.Context(), hub, "kubelb", dir, log))
		require.Equal(t, 7*keyRetry, time.Since(began))
	})
	saved, err := os.ReadFile(filepath.Join(dir, keyFile))
	require.NoError(t, err)
	require.Len(t, saved, keySize)
	next := bytes.Repeat([]byte{4}, keySize)
	require.Equal(t, next, WaitForKey(t.Context(), hubWithKey(next), "kubelb", dir, log), "the hub's key beats the saved one")
	require.Equal(t, next, WaitForKey(t.Context(), hubWithKey(next[1:]), "kubelb", dir, log), "a key that is too short does not")
}

func TestAKeyThatCannotBeSavedIsUsedAllTheSame(t *testing.T) {
	var logged bytes.Buffer
	key, file := bytes.Repeat([]byte{1}, keySize), filepath.Join(t.TempDir(), "no directory")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Equal(t, key, WaitForKey(t.Context(), hubWithKey(key), "kubelb", file, slog.New(slog.NewTextHandler(&logged, nil))))
	require.Contains(t, logged.String(), "without it a start while the API is unreachable has no heartbeats")
}
