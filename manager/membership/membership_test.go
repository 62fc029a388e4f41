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

// server keeps Leases as an API server does: whoever updates one must have seen its latest version.
type server struct {
	mu      sync.Mutex
	version int
	leases  map[string]coordinationv1.Lease
}

// connection is one client's way to the server, which can be cut.
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

// member runs one until the test ends or stop is called.
func (s *server) member(t *testing.T, name, process string) (*Member, *connection, func()) {
	c := &connection{server: s}
	m := &Member{options: Options{Name: name, Duration: DefaultDuration, Changed: func() {}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))},
		leases: c, identity: name + "/" + process, hurry: make(chan struct{}, 1), peers: map[string]*peer{}}
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

func (m *Member) seesPeer(name string) bool {
	peers, _, _ := m.Peers()
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

func TestMembersSeeWhatTheOthersSay(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, _, _ := s.member(t, "b", "1")
	within(t, soon, func() bool { return a.seesPeer("b") && b.seesPeer("a") }, "they see each other")
	_, candidates, _ := a.Peers()
	require.Empty(t, candidates, "nobody has said that it is one")
	view := election.View{Candidates: []string{"a", "b"}}
	require.False(t, b.Told(view))
	b.Say(Said{View: view, Candidate: true})
	within(t, soon, func() bool {
		peers, candidates, _ := a.Peers()
		return b.Told(view) && len(candidates) == 1 && len(peers) == 1 && peers[0].View.Equal(view)
	}, "it is known")
}

func TestAMemberThatLeavesIsGoneAtOnce(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, _, leave := s.member(t, "b", "1")
	at := []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	b.Say(Said{Reached: at, Unheard: Unheard{IPv6: true}})
	is := func(o Other) func() bool {
		return func() bool { others := a.Others(); return len(others) == 1 && reflect.DeepEqual(others[0], o) }
	}
	within(t, soon, is(Other{Name: "b", Reached: at, Present: true, Unheard: Unheard{IPv6: true}}), "b is seen, and whose addresses it cannot take over")
	b.Say(Said{Reached: at, Leaving: true})
	within(t, soon, is(Other{Name: "b", Reached: at, Present: true, Leaving: true}), "b is about to leave")
	leave()
	require.False(t, b.Holds())
	within(t, soon, func() bool { return !a.seesPeer("b") }, "b is gone")
	within(t, soon, is(Other{Name: "b", Leaving: true}), "it has left, and taken its dataplane along")
}

func TestAMemberThatIsCutOffKnowsItsEndBeforeItsPeersDo(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, way, _ := s.member(t, "b", "1")
	within(t, soon, func() bool { return a.seesPeer("b") && b.Holds() }, "b is seen")
	require.Zero(t, b.Idle())
	before, _ := b.Term()
	way.cut.Store(true)
	for begin := time.Now(); a.seesPeer("b"); time.Sleep(time.Millisecond) {
		require.Less(t, time.Since(begin), soon, "a still sees b")
	}
	require.False(t, b.Holds(), "b believes that its lease lasts although a takes it for gone")
	require.False(t, b.Told(election.View{}))
	require.Positive(t, b.Idle())
	way.cut.Store(false)
	within(t, soon, func() bool { return a.seesPeer("b") && b.Holds() }, "b is back")
	after, _ := b.Term()
	require.Equal(t, before+1, after, "its lease is another one")
}

func TestAnotherProcessOfTheSameNameWaitsForTheLeaseOfTheFirst(t *testing.T) {
	s := newServer()
	first, way, _ := s.member(t, "a", "1")
	within(t, soon, first.Holds, "the first holds it")
	second, _, _ := s.member(t, "a", "2")
	time.Sleep(DefaultDuration / 2)
	require.False(t, second.Holds())
	way.cut.Store(true) // frozen, say
	for begin := time.Now(); !second.Holds(); time.Sleep(time.Millisecond) {
		require.Less(t, time.Since(begin), soon, "the second does not get the lease")
	}
	require.False(t, first.Holds(), "both hold the lease")
	way.cut.Store(false)
	time.Sleep(DefaultDuration / 2)
	require.False(t, first.Holds(), "the first takes it back while the second lives")
}

func TestALeaseThatSomebodyDeletesIsWrittenAgain(t *testing.T) {
	s := newServer()
	a, _, _ := s.member(t, "a", "1")
	b, _, _ := s.member(t, "b", "1")
	within(t, soon, func() bool { return b.seesPeer("a") }, "a is seen")
	s.mu.Lock()
	delete(s.leases, "a")
	s.mu.Unlock()
	for begin := time.Now(); time.Since(begin) < DefaultDuration; time.Sleep(time.Millisecond) {
		require.True(t, b.seesPeer("a"), "a lives, whoever has deleted its Lease")
	}
	within(t, soon, a.Holds, "a holds its lease")
}
