package membership

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"kubelb.k8c.io/core/election"
)

// server stores Leases like an API server: an update needs the latest resource version.
type server struct {
	mu      sync.Mutex
	version int
	leases  map[string]coordinationv1.Lease
}

// connection is the connection of one client to the server. It can be cut.
type connection struct {
	coordination.LeaseInterface
	*server
	cut atomic.Bool
}

var leasesResource = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

func (c *connection) do(ctx context.Context, f func() error) error {
	if c.cut.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return f()
}

func (c *connection) put(lease *coordinationv1.Lease) *coordinationv1.Lease {
	c.version++
	stored := lease.DeepCopy()
	stored.ResourceVersion = strconv.Itoa(c.version)
	c.leases[lease.Name] = *stored
	return stored.DeepCopy()
}

func (c *connection) Get(ctx context.Context, name string, _ metav1.GetOptions) (out *coordinationv1.Lease, err error) {
	return out, c.do(ctx, func() error {
		lease, there := c.leases[name]
		if !there {
			return apierrors.NewNotFound(leasesResource, name)
		}
		out = lease.DeepCopy()
		return nil
	})
}

func (c *connection) Create(ctx context.Context, lease *coordinationv1.Lease, _ metav1.CreateOptions) (out *coordinationv1.Lease, err error) {
	return out, c.do(ctx, func() error {
		if _, there := c.leases[lease.Name]; there {
			return apierrors.NewAlreadyExists(leasesResource, lease.Name)
		}
		out = c.put(lease)
		return nil
	})
}

func (c *connection) Update(ctx context.Context, lease *coordinationv1.Lease, _ metav1.UpdateOptions) (out *coordinationv1.Lease, err error) {
	return out, c.do(ctx, func() error {
		if c.leases[lease.Name].ResourceVersion != lease.ResourceVersion {
			return apierrors.NewConflict(leasesResource, lease.Name, errors.New("another version"))
		}
		out = c.put(lease)
		return nil
	})
}

func (c *connection) List(ctx context.Context, _ metav1.ListOptions) (out *coordinationv1.LeaseList, err error) {
	out = &coordinationv1.LeaseList{}
	return out, c.do(ctx, func() error {
		for _, lease := range c.leases {
			out.Items = append(out.Items, *lease.DeepCopy())
		}
		return nil
	})
}

// member runs a member until the test ends or stop is called.
func (s *server) member(t *testing.T, name, process string) (*Member, *connection, func()) {
	c := &connection{server: s}
	m := &Member{options: Options{Name: name, Duration: DefaultDuration, Changed: func() {}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))},
		leases: c, identity: name + "/" + process, renewNow: make(chan struct{}, 1), peers: map[string]*peerLease{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return m, c, stop
}

func newServer() *server { return &server{leases: map[string]coordinationv1.Lease{}} }

func (m *Member) knowsPeer(name string) bool {
	peers, _, _ := m.ActivePeers()
	for _, p := range peers {
		if p.Name == name {
			return true
		}
	}
	return false
}

func within(t *testing.T, limit time.Duration, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, limit, 5*time.Millisecond, what)
}

const soon = 5 * time.Second

func TestAMemberKnowsWhatItsPeersPublish(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, _, _ := s.member(t, "b", "1")
	within(t, soon, func() bool { return a.knowsPeer("b") && b.knowsPeer("a") }, "they know each other")
	_, candidates, _ := a.ActivePeers()
	require.Empty(t, candidates, "no gateway is a candidate yet")
	view := election.View{Candidates: []string{"a", "b"}}
	require.False(t, b.IsPublished(view))
	b.Publish(Published{View: view, Candidate: true})
	within(t, soon, func() bool {
		peers, candidates, _ := a.ActivePeers()
		return b.IsPublished(view) && len(candidates) == 1 && len(peers) == 1 && peers[0].View.Equal(view)
	}, "a knows that b is a candidate")
}

func TestAMemberThatShutsDownIsGoneAtOnce(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, _, stop := s.member(t, "b", "1")
	at := []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	b.Publish(Published{RedirectAddresses: at, SilentFamilies: SilentFamilies{IPv6: true}})
	is := func(o Peer) func() bool {
		return func() bool { others := a.AllPeers(); return len(others) == 1 && reflect.DeepEqual(others[0], o) }
	}
	within(t, soon, is(Peer{Name: "b", RedirectAddresses: at, Active: true, Silent: SilentFamilies{IPv6: true}}), "a knows b, and the families that b cannot take over")
	b.Publish(Published{RedirectAddresses: at, Draining: true})
	within(t, soon, is(Peer{Name: "b", RedirectAddresses: at, Active: true, Draining: true}), "b drains")
	stop()
	require.False(t, b.HoldsLease())
	within(t, soon, func() bool { return !a.knowsPeer("b") }, "b is gone")
	within(t, soon, is(Peer{Name: "b", Draining: true}), "b has shut down, and its dataplane with it")
}

func TestAMemberWithoutTheAPIGivesUpItsLeaseBeforeItsPeersCountItAsGone(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, conn, _ := s.member(t, "b", "1")
	within(t, soon, func() bool { return a.knowsPeer("b") && b.HoldsLease() }, "a knows b")
	require.Zero(t, b.WithoutLeaseFor())
	before, _ := b.LeaseNumber()
	conn.cut.Store(true)
	for begin := time.Now(); a.knowsPeer("b"); time.Sleep(time.Millisecond) {
		require.Less(t, time.Since(begin), soon, "a still counts b as active")
	}
	require.False(t, b.HoldsLease(), "b counts its Lease as valid although a counts b as gone")
	require.False(t, b.IsPublished(election.View{}))
	require.Positive(t, b.WithoutLeaseFor())
	conn.cut.Store(false)
	within(t, soon, func() bool { return a.knowsPeer("b") && b.HoldsLease() }, "b is back")
	after, _ := b.LeaseNumber()
	require.Equal(t, before+1, after, "it has acquired its Lease again")
}

func TestAnotherProcessOfTheSameNameWaitsForTheLeaseOfTheFirst(t *testing.T) {
	s := newServer()
	first, conn, _ := s.member(t, "a", "1")
	within(t, soon, first.HoldsLease, "the first process has the Lease")
	second, _, _ := s.member(t, "a", "2")
	time.Sleep(DefaultDuration / 2)
	require.False(t, second.HoldsLease())
	conn.cut.Store(true) // as if the process stood still
	for begin := time.Now(); !second.HoldsLease(); time.Sleep(time.Millisecond) {
		require.Less(t, time.Since(begin), soon, "the second process does not get the Lease")
	}
	require.False(t, first.HoldsLease(), "both processes hold the Lease")
	conn.cut.Store(false)
	time.Sleep(DefaultDuration / 2)
	require.False(t, first.HoldsLease(), "the first process has the Lease again while the second runs")
}

func TestADeletedLeaseIsWrittenAgain(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, _, _ := s.member(t, "b", "1")
	within(t, soon, func() bool { return b.knowsPeer("a") }, "b knows a")
	s.mu.Lock()
	delete(s.leases, "a")
	s.mu.Unlock()
	for begin := time.Now(); time.Since(begin) < DefaultDuration; time.Sleep(time.Millisecond) {
		require.True(t, b.knowsPeer("a"), "a runs, although its Lease was deleted")
	}
	within(t, soon, a.HoldsLease, "a has its Lease again")
}
