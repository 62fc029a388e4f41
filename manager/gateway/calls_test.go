package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/probe"
)

// hangFile has the next call of that name not return while it is there, as a bug would, or a kernel.
func hangFile(name string) string { return "hang-" + name }

// endFile has the process end when it is told of a change.
const endFile = "end"

func (n *needy) hang(config dataplane.Config, name string) {
	for has(config, hangFile(name)) {
		time.Sleep(10 * time.Millisecond)
	}
}

func (n *needy) Applied(ctx context.Context) (dataplane.Applied, error) {
	n.hang(n.config, "Applied")
	return n.Fake.Applied(ctx)
}

func (n *needy) Apply(ctx context.Context, c dataplane.Change) (dataplane.Result, error) {
	n.hang(n.config, "Apply")
	if has(n.config, endFile) {
		os.Exit(1)
	}
	return n.Fake.Apply(ctx, c)
}

func TestEachCallOfABackendHasADeadlineAndIsNamed(t *testing.T) {
	for _, name := range []string{"Preflight", "Configure", "Applied", "Apply"} {
		t.Run(name, func(t *testing.T) {
			h := newOnHost(t)
			h.has(moduleFile)
			h.has(sysctlFile)
			short := 300 * time.Millisecond
			h.host.limits.preflight, h.host.limits.configure, h.host.limits.applied, h.host.limits.apply = short, short, short, short
			h.has(hangFile(name))
			began := time.Now()
			ready := meta.FindStatusCondition(h.conditions(), v1alpha1.ConditionReady)
			require.Less(t, time.Since(began), 30*time.Second)
			if name == "Preflight" {
				requireReady(t, h.conditions()) // what it lacks is not known, and it works
				return
			}
			require.Equal(t, "BackendFailed", ready.Reason)
			require.Contains(t, ready.Message, "the backend has not answered "+name)
			require.Contains(t, ready.Message, "within 300ms")
			require.GreaterOrEqual(t, time.Until(h.retryAt), hungPause/2, "it would meet the same work at once")
			require.False(t, h.host.running(), "it is ended by force")
			h.hasNoMore(hangFile(name))
			h.host.limits = defaultLimits()
			requireReady(t, h.conditions())
		})
	}
}

func TestABackendThatIsStoppedBySignalIsEndedAllTheSame(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	requireReady(t, h.conditions())
	pid := h.host.process.Pid()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	began := time.Now()
	h.host.stop()
	require.Less(t, time.Since(began), 20*time.Second)
	require.Eventually(t, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }, 10*time.Second, 10*time.Millisecond)
}

// locked is a board of several goroutines.
type locked struct {
	mu    sync.Mutex // guards board
	board board
}

func (l *locked) Announce(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.board.Announce(addresses...)
}

func (l *locked) Withdraw(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.board.Withdraw(addresses...)
}

func (l *locked) has(address netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.board[address]
}

func (*locked) Able() bool                { return true }
func (*locked) Silent(ipam.Family) string { return "" }
func (*locked) Run(context.Context) error { return nil }

func TestElectionsAndEventsGoOnWhileABackendHangs(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	requireReady(t, h.conditions())
	announced, one := &locked{board: board{}}, netip.MustParseAddr("203.0.113.1")
	h.options.Announcer = announced
	h.prober = probe.New(probe.DefaultConfig(), func(probe.Result) {})
	h.answering.answers[one] = true
	announced.Announce(one)
	h.has(hangFile("Applied"))
	h.host.stop() // it is started again, and asked what it holds
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.loop(ctx, func() bool { return true }, nil) }()
	hears := func(e event) {
		done := make(chan bool, 1)
		h.send(ctx, func(g *Gateway) { e(g); done <- true })
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the loop stands still")
		}
	}
	calling := ""
	require.Eventually(t, func() bool {
		hears(func(g *Gateway) {
			if g.host.calling != nil {
				calling = g.host.calling.name
			}
		})
		return calling == "Applied"
	}, 20*time.Second, 10*time.Millisecond)
	hears(func(g *Gateway) { g.wished = true })
	require.Eventually(t, func() bool { return !announced.has(one) }, 20*time.Second, 10*time.Millisecond, "it drains, and lets go of its address")
	hears(func(g *Gateway) { require.NotNil(t, g.host.calling, "all that was while the backend hung") })
	hears(func(g *Gateway) { g.host.calling.began = g.host.calling.began.Add(-42 * time.Second) })
	require.Eventually(t, func() bool {
		busy := meta.FindStatusCondition((<-h.status).Conditions, v1alpha1.ConditionBackendBusy)
		return busy != nil && busy.Message == "the backend has worked on Applied for more than 40s; it may take 2m0s, then it is started again. What the dataplane holds goes on; later changes wait"
	}, 20*time.Second, time.Millisecond)
	require.NoError(t, os.Remove(filepath.Join(h.dir, hangFile("Applied"))))
	require.Eventually(t, func() bool {
		s := <-h.status
		return s.AppliedResourceVersion != "" && meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionBackendBusy) == nil
	}, 20*time.Second, time.Millisecond)
	end()
	require.NoError(t, <-ended)
}

func TestALargeChangeMayTakeLonger(t *testing.T) {
	l := defaultLimits()
	require.Equal(t, time.Minute, l.forChange(model.Delta{}))
	fleet := model.Delta{UpsertFrontends: make([]model.Frontend, 10_000), UpsertPools: make([]model.Pool, 10_000)}
	require.Greater(t, l.forChange(fleet), 4*time.Minute)
	fleet.UpsertPools[0].Endpoints = make([]model.Endpoint, 1_000_000)
	require.Equal(t, l.applyMost, l.forChange(fleet))
}

// A decision that waits for the backend is not carried out after a later one.
func TestADecisionThatWaitedIsGivenUpForALaterOne(t *testing.T) {
	b := board{}
	g := New(Options{Name: "g", Announcer: b, Elects: true, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.host = &host{}
	one := netip.MustParseAddr("203.0.113.1")
	g.answering.answers[one] = false
	is := func(netip.Addr) (string, bool) { return "g", true }
	isNot := func(netip.Addr) (string, bool) { return "other", true }
	may := func(netip.Addr) bool {
		// Meanwhile another one is elected.
		g.answering.answers[one] = false
		require.True(t, g.decide(t.Context(), "later", isNot, func(netip.Addr) bool { return true }))
		return true
	}
	require.False(t, g.decide(t.Context(), "earlier", is, may))
	require.Empty(t, b)
}
