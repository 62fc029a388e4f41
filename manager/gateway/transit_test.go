package gateway

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/announce/announcetest"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

// filterCalls is a Filter that sends a value for each call of Update.
type filterCalls chan struct{}

func (f filterCalls) Update([]netip.Addr, []netip.Addr) error {
	f <- struct{}{}
	return nil
}
func (filterCalls) Remove() error { return nil }

// A filter that is set before the dataplane has its chains does not know that the dataplane's connections are tracked, and drops them.
func TestAGatewayServesOnceItsFilterKnowsTheDataplane(t *testing.T) {
	calls := make(filterCalls)
	h := newTestGatewayWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announcetest.Recorder{}}, HostOptions: HostOptions{TransitFilter: calls}})
	h.Add(drivertest.Module, drivertest.Sysctl)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- h.runTransitFilter(ctx) }()
	next := func() { (<-h.events)(h.Gateway) }

	next() // the filter reads the model
	<-calls
	next() // the filter is set
	require.False(t, h.served)
	h.conditions()
	require.True(t, h.driver.Synced())
	require.False(t, h.served, "the filter was set before")
	require.ErrorIs(t, h.Ready(nil), errStarting)

	begin := time.Now()
	next()
	<-calls
	require.False(t, h.served, "the filter is not set yet")
	next()
	require.True(t, h.served)
	require.Less(t, time.Since(begin), transitPause, "it does not wait for transitPause")
	h.driver.Stop()
	requireReady(t, h.conditions())
	require.True(t, h.served, "a dataplane that is started again has its chains")
	cancel()
	require.NoError(t, <-ended)
}
