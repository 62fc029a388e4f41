package gateway

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

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
	announced, one := &locked{board: board{}}, netip.MustParseAddr("203.0.113.1")
	h := newOnHostWith(t, Options{Announcer: announced})
	h.Has(drivertest.Module, drivertest.Sysctl)
	requireReady(t, h.conditions())
	h.ownership.Add(one)
	h.elect(t.Context())
	require.True(t, announced.has(one))
	h.Has(drivertest.Hang("Applied"))
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
		return busy != nil && busy.Message == "the backend has worked on Applied for more than 40s; it may take 2m0s, then it is started again. What the dataplane holds goes on; later changes wait"
	}, 20*time.Second, time.Millisecond)
	h.HasNoMore(drivertest.Hang("Applied"))
	require.Eventually(t, func() bool {
		s := <-h.writer.Newest()
		return s.AppliedResourceVersion != "" && meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionBackendBusy) == nil
	}, 20*time.Second, time.Millisecond)
	end()
	require.NoError(t, <-ended)
}
