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

// lockedRecorder is a Recorder for several goroutines.
type lockedRecorder struct {
	mu       sync.Mutex // guards recorder
	recorder announcetest.Recorder
}

func (l *lockedRecorder) Announce(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recorder.Announce(addresses...)
}

func (l *lockedRecorder) Withdraw(addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recorder.Withdraw(addresses...)
}

func (l *lockedRecorder) has(address netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recorder[address]
}

func (*lockedRecorder) CanAnnounce() bool               { return true }
func (*lockedRecorder) SilentReason(ipam.Family) string { return "" }
func (*lockedRecorder) Run(context.Context) error       { return nil }

func TestElectionsAndEventsGoOnWhileThePluginHangs(t *testing.T) {
	announced, one := &lockedRecorder{recorder: announcetest.Recorder{}}, netip.MustParseAddr("203.0.113.1")
	h := newTestGatewayWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announced}})
	h.Add(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.ownership.Add(one)
	h.elect(t.Context())
	require.True(t, announced.has(one))
	h.Add(drivertest.Hang("Applied"))
	h.driver.Stop() // it is started again, and Applied is called
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.loop(ctx, func() bool { return true }) }()
	handle := func(e event) {
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
		handle(func(g *Gateway) {
			if g.driver.Calling() != nil {
				calling = g.driver.Calling().Name
			}
		})
		return calling == "Applied"
	}, 20*time.Second, 10*time.Millisecond)
	handle(func(g *Gateway) { g.drain.Request(true) })
	require.Eventually(t, func() bool { return !announced.has(one) }, 20*time.Second, 10*time.Millisecond, "it drains, and withdraws its address")
	handle(func(g *Gateway) { require.NotNil(t, g.driver.Calling(), "the plugin still hangs") })
	handle(func(g *Gateway) { g.driver.Calling().Began = g.driver.Calling().Began.Add(-42 * time.Second) })
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

// runLoop runs the gateway's loop until the test ends. synced reports whether all first lists were read.
func (h *testGateway) runLoop(synced func() bool) {
	ctx, end := context.WithCancel(h.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.loop(ctx, synced) }()
	h.t.Cleanup(func() {
		end()
		require.NoError(h.t, <-ended)
	})
}

// requireEventually requires that the loop reaches a state.
func (h *testGateway) requireEventually(is func(*Gateway) bool, why string) {
	h.t.Helper()
	require.Eventually(h.t, func() bool {
		answer, asked := query(h.t.Context(), h.Gateway, is)
		return asked && answer
	}, 20*time.Second, 10*time.Millisecond, why)
}

func TestNothingIsSentToThePluginBeforeAllFirstListsAreRead(t *testing.T) {
	h := newTestGateway(t)
	h.Add(drivertest.Module)
	var synced atomic.Bool
	h.request("a", 1, 1, netip.MustParseAddr("203.0.113.1"))
	h.runLoop(synced.Load)
	for range 5 {
		h.send(t.Context(), func(*Gateway) {})
		time.Sleep(2 * gatherTime)
	}
	h.requireEventually(func(g *Gateway) bool { return !g.driver.Running() && g.driver.Version() == 0 }, "an empty model would empty the dataplane")
	require.Empty(t, h.Kernel.Changes())
	synced.Store(true)
	h.requireEventually(func(g *Gateway) bool { return g.driver.HeldCount() == 1 }, "the model is sent now")
	require.NoError(t, h.Ready(nil))
}

func TestTheLoopSendsAllBatchesOfALargeChange(t *testing.T) {
	h := newTestGateway(t)
	h.Add(drivertest.Module)
	h.runLoop(func() bool { return true })
	h.requireEventually(func(g *Gateway) bool { return g.served }, "it starts with an empty model")
	before := len(h.Kernel.Changes())
	h.send(t.Context(), func(*Gateway) {
		h.request("busy", 250, 2, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4"))
	})
	require.Eventually(t, func() bool { // without any event
		sent := 0
		for _, c := range h.Kernel.Changes()[before:] {
			sent += len(c.UpsertFrontends)
		}
		return sent == 1000
	}, 10*time.Second, 10*time.Millisecond)
	require.GreaterOrEqual(t, len(h.Kernel.Changes())-before, 2, "batches are bounded")
}

func TestTheLoopRestartsAPluginThatHasEnded(t *testing.T) {
	h := newTestGateway(t)
	h.Add(drivertest.Module)
	h.request("a", 1, 1, netip.MustParseAddr("203.0.113.1"))
	h.runLoop(func() bool { return true })
	h.requireEventually(func(g *Gateway) bool { return g.driver.HeldCount() == 1 }, "it works")
	former, _ := query(t.Context(), h.Gateway, func(g *Gateway) driver.Process { return g.driver.Process() })
	require.NoError(t, former.Kill())
	h.requireEventually(func(g *Gateway) bool {
		return g.driver.Running() && g.driver.Process() != former && g.driver.Problem() == nil
	}, "another plugin is started")
}

func TestAWakeUpMakesTheLoopElect(t *testing.T) {
	announced, one := &lockedRecorder{recorder: announcetest.Recorder{}}, netip.MustParseAddr("203.0.113.1")
	own := &fakeLease{}
	wake := NewWake()
	right := ownership.NewRight(ownership.RightOptions{Lease: own, Segment: own, Changed: wake.Up, Log: slog.New(slog.DiscardHandler)})
	h := newTestGatewayWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announced}, PeerOptions: PeerOptions{Right: right}, Wake: wake})
	h.Add(drivertest.Module)
	h.request("a", 1, 1, one)
	h.runLoop(func() bool { return true })
	h.requireEventually(func(g *Gateway) bool { return g.served && !g.driver.HasWork() }, "the dataplane holds the address")
	time.Sleep(10 * gatherTime)
	require.False(t, announced.has(one), "it has no Lease")
	own.holds.Store(true)
	wake.Up()
	wake.Up() // it does not block
	require.Eventually(t, func() bool { return announced.has(one) }, 20*time.Second, time.Millisecond)
}

func TestTheLoopSleepsUntilThereIsWork(t *testing.T) {
	h := newTestGateway(t)
	h.Add(drivertest.Module)
	requireReady(t, h.conditions())
	require.Equal(t, report.CountInterval, h.pause(), "counters are read")
	h.drain.Shutdown.Begin()
	require.Equal(t, drain.CountInterval, h.pause(), "connections are counted")
	h.drain.Update(time.Now(), h.ownership.IsReplaced)
	require.Equal(t, settleInterval, h.pause(), "its addresses are withdrawn soon")
	h.request("busy", 250, 1, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3"))
	h.workOnce()
	require.True(t, h.driver.HasWork())
	require.Zero(t, h.pause(), "there is a batch to send")
}
