package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce/announcetest"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
	"kubelb.k8c.io/manager/gateway/ownership"
	"kubelb.k8c.io/manager/gateway/report"
)

// locked is a board of several goroutines.
type locked struct {
	mu    sync.Mutex // guards board
	board announcetest.Board
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
	announced, one := &locked{board: announcetest.Board{}}, netip.MustParseAddr("203.0.113.1")
	h := newOnHostWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announced}})
	h.Add(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.ownership.Add(one)
	h.elect(t.Context())
	require.True(t, announced.has(one))
	h.Add(drivertest.Hang("Applied"))
	h.driver.Stop() // it is started again, and asked what it holds
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.loop(ctx, func() bool { return true }) }()
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
			if g.driver.Calling() != nil {
				calling = g.driver.Calling().Name
			}
		})
		return calling == "Applied"
	}, 20*time.Second, 10*time.Millisecond)
	hears(func(g *Gateway) { g.drain.Request(true) })
	require.Eventually(t, func() bool { return !announced.has(one) }, 20*time.Second, 10*time.Millisecond, "it drains, and lets go of its address")
	hears(func(g *Gateway) { require.NotNil(t, g.driver.Calling(), "all that was while the backend hung") })
	hears(func(g *Gateway) { g.driver.Calling().Began = g.driver.Calling().Began.Add(-42 * time.Second) })
	require.Eventually(t, func() bool {
		busy := meta.FindStatusCondition((<-h.writer.Newest()).Conditions, v1alpha1.ConditionBackendBusy)
		return busy != nil && busy.Message == "the plugin has worked on Applied for more than 40s; after 2m0s it is started again. The dataplane goes on with what it holds, and later changes wait"
	}, 20*time.Second, time.Millisecond)
	h.Remove(drivertest.Hang("Applied"))
	require.Eventually(t, func() bool {
		s := <-h.writer.Newest()
		return s.AppliedResourceVersion != "" && meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionBackendBusy) == nil
	}, 20*time.Second, time.Millisecond)
	end()
	require.NoError(t, <-ended)
}

// loops has the gateway's loop run until the test ends. synced tells whether all first lists are in.
func (h *onHost) loops(synced func() bool) {
	ctx, end := context.WithCancel(h.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.loop(ctx, synced) }()
	h.t.Cleanup(func() {
		end()
		require.NoError(h.t, <-ended)
	})
}

// eventually requires that the loop comes to a state.
func (h *onHost) eventually(is func(*Gateway) bool, why string) {
	h.t.Helper()
	require.Eventually(h.t, func() bool {
		answer, asked := asked(h.t.Context(), h.Gateway, is)
		return asked && answer
	}, 20*time.Second, 10*time.Millisecond, why)
}

func TestNothingIsSentToThePluginBeforeAllFirstListsAreRead(t *testing.T) {
	h := newOnHost(t)
	h.Add(drivertest.Module)
	var synced atomic.Bool
	h.asks("a", 1, 1, netip.MustParseAddr("203.0.113.1"))
	h.loops(synced.Load)
	for range 5 {
		h.send(t.Context(), func(*Gateway) {})
		time.Sleep(2 * gather)
	}
	h.eventually(func(g *Gateway) bool { return !g.driver.Running() && g.driver.Version() == 0 }, "an empty model would empty the dataplane")
	require.Empty(t, h.Kernel.Changes())
	synced.Store(true)
	h.eventually(func(g *Gateway) bool { return g.driver.HeldCount() == 1 }, "now it is")
	require.NoError(t, h.Ready(nil))
}

func TestTheLoopSendsAllBatchesOfALargeChangeOneAfterAnother(t *testing.T) {
	h := newOnHost(t)
	h.Add(drivertest.Module)
	h.loops(func() bool { return true })
	h.eventually(func(g *Gateway) bool { return g.served }, "it begins with nothing")
	before := len(h.Kernel.Changes())
	h.send(t.Context(), func(*Gateway) {
		h.asks("busy", 250, 2, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4"))
	})
	require.Eventually(t, func() bool { // without anything that wakes the loop up
		sent := 0
		for _, c := range h.Kernel.Changes()[before:] {
			sent += len(c.UpsertFrontends)
		}
		return sent == 1000
	}, 10*time.Second, 10*time.Millisecond)
	require.GreaterOrEqual(t, len(h.Kernel.Changes())-before, 2, "each is bounded")
}

func TestTheLoopStartsAPluginAgainThatHasEnded(t *testing.T) {
	h := newOnHost(t)
	h.Add(drivertest.Module)
	h.asks("a", 1, 1, netip.MustParseAddr("203.0.113.1"))
	h.loops(func() bool { return true })
	h.eventually(func(g *Gateway) bool { return g.driver.HeldCount() == 1 }, "it works")
	former, _ := asked(t.Context(), h.Gateway, func(g *Gateway) driver.Process { return g.driver.Process() })
	require.NoError(t, former.Kill())
	h.eventually(func(g *Gateway) bool {
		return g.driver.Running() && g.driver.Process() != former && g.driver.Problem() == nil
	}, "another one is started")
}

func TestWhatWakesUpTheLoopHasItElect(t *testing.T) {
	announced, one := &locked{board: announcetest.Board{}}, netip.MustParseAddr("203.0.113.1")
	own := &lease{}
	wake := NewWake()
	right := ownership.NewRight(ownership.RightOptions{Lease: own, Segment: own, Changed: wake.Up, Log: slog.New(slog.DiscardHandler)})
	h := newOnHostWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announced}, PeerOptions: PeerOptions{Right: right}, Wake: wake})
	h.Add(drivertest.Module)
	h.asks("a", 1, 1, one)
	h.loops(func() bool { return true })
	h.eventually(func(g *Gateway) bool { return g.served && !g.driver.HasWork() }, "the dataplane holds the address")
	time.Sleep(10 * gather)
	require.False(t, announced.has(one), "it has no Lease")
	own.holds.Store(true)
	wake.Up()
	wake.Up() // which blocks nobody
	require.Eventually(t, func() bool { return announced.has(one) }, 20*time.Second, time.Millisecond)
}

func TestTheLoopSleepsUntilSomethingIsToBeDone(t *testing.T) {
	h := newOnHost(t)
	h.Add(drivertest.Module)
	requireReady(t, h.conditions())
	require.Equal(t, report.CountInterval, h.pause(), "counters are read")
	h.drain.Shutdown.Begin()
	require.Equal(t, drain.CountInterval, h.pause(), "connections are counted")
	h.drain.Update(time.Now(), h.ownership.IsReplaced)
	require.Equal(t, settleEvery, h.pause(), "its addresses are about to be withdrawn")
	h.asks("busy", 250, 1, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"))
	h.works()
	require.True(t, h.driver.HasWork())
	require.Zero(t, h.pause(), "there is a batch to send")
}
