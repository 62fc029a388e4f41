package redirect

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHostsOfFailedGatewaysAreChecked(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	alive := map[netip.Addr]bool{one: true}
	var checks atomic.Int32
	r := NewReachability(func(a netip.Addr) bool {
		checks.Add(1)
		return alive[a]
	}, nil, func() {})
	require.Equal(t, []netip.Addr{one}, r.Alive([]netip.Addr{one, two}))
	require.Equal(t, []netip.Addr{one}, r.Alive([]netip.Addr{one, two}))
	require.EqualValues(t, 2, checks.Load(), "each host is checked once")
	require.False(t, r.checkHosts())
	alive = map[netip.Addr]bool{two: true}
	require.True(t, r.checkHosts())
	require.Equal(t, []netip.Addr{two}, r.Alive([]netip.Addr{one, two}))
	for _, host := range r.hosts {
		host.lastQuery = time.Now().Add(-2 * forgetAfter)
	}
	require.False(t, r.checkHosts())
	require.Empty(t, r.hosts, "nobody asked for them recently")
}

func TestManyHostsAreCheckedInParallel(t *testing.T) {
	var gone []netip.Addr
	for i := range 50 {
		gone = append(gone, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	var asking sync.WaitGroup
	asking.Add(len(gone))
	r := NewReachability(func(netip.Addr) bool {
		asking.Done()
		asking.Wait() // until all others are checked as well
		return false
	}, nil, func() {})
	require.Empty(t, r.Alive(gone))
}

func TestAHostThatRunsRefusesADatagram(t *testing.T) {
	require.True(t, CheckHost(netip.MustParseAddr("127.0.0.1")))
}

func TestChangesOfAnswersAndOfOwnAddressesAreNoticedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := netip.MustParseAddr("192.0.2.1")
		var gone, moved atomic.Bool
		var changes, checks atomic.Int32
		own := func() []netip.Addr {
			if moved.Load() {
				return []netip.Addr{host.Next()}
			}
			return nil
		}
		r := NewReachability(func(netip.Addr) bool { checks.Add(1); return !gone.Load() }, own, func() { changes.Add(1) })
		require.Equal(t, []netip.Addr{host}, r.Alive([]netip.Addr{host}))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		pass := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		pass(10 * checkInterval)
		require.Zero(t, changes.Load(), "nothing has changed")
		gone.Store(true)
		pass(checkInterval)
		require.EqualValues(t, 1, changes.Load())
		moved.Store(true)
		pass(checkInterval)
		require.EqualValues(t, 2, changes.Load())
		pass(forgetAfter)
		before := checks.Load()
		pass(forgetAfter)
		require.Equal(t, before, checks.Load(), "nobody asks for the host any more")
		require.EqualValues(t, 2, changes.Load())
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestWithoutOwnAddressesOnlyHostsAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int32
		r := NewReachability(func(netip.Addr) bool { return true }, nil, func() { changes.Add(1) })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		time.Sleep(2 * checkInterval)
		cancel()
		require.NoError(t, <-ended)
		require.Zero(t, changes.Load())
	})
}
