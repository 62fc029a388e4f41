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

// filterCalls is a Filter that tells when it is brought to something.
type filterCalls chan struct{}

func (f filterCalls) Keep([]netip.Addr, []netip.Addr) error {
	f <- struct{}{}
	return nil
}
func (filterCalls) End() error { return nil }

// A filter that is made before the dataplane has its chains does not know that the dataplane's connections are tracked, and drops them.
func TestAGatewayServesOnceItsFilterKnowsOfTheDataplane(t *testing.T) {
	calls := make(filterCalls)
	h := newOnHostWith(t, Options{AnnounceOptions: AnnounceOptions{Announcer: announcetest.Board{}}, HostOptions: HostOptions{Transit: calls}})
	h.Add(drivertest.Module, drivertest.Sysctl)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- h.keepTransit(ctx) }()
	next := func() { (<-h.events)(h.Gateway) }

	next() // what is the filter to be brought to?
	<-calls
	next() // it is done
	require.False(t, h.served)
	h.conditions()
	require.True(t, h.driver.Synced())
	require.False(t, h.served, "the filter was made before")
	require.ErrorIs(t, h.Ready(nil), errStarting)

	begin := time.Now()
	next()
	<-calls
	require.False(t, h.served, "the filter is not done")
	next()
	require.True(t, h.served)
	require.Less(t, time.Since(begin), transitPause, "it does not wait for other changes")
	h.driver.Stop()
	requireReady(t, h.conditions())
	require.True(t, h.served, "a dataplane that starts again finds its chains")
	cancel()
	require.NoError(t, <-ended)
}
