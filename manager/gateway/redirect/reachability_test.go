package redirect

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
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
