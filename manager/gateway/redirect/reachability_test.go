package redirect

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHostsOfFailedGatewaysAreAskedWhetherTheyAreThere(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	there := map[netip.Addr]bool{one: true}
	var asked atomic.Int32
	r := NewReachability(func(a netip.Addr) bool {
		asked.Add(1)
		return there[a]
	}, nil, func() {})
	require.Equal(t, []netip.Addr{one}, r.Alive([]netip.Addr{one, two}))
	require.Equal(t, []netip.Addr{one}, r.Alive([]netip.Addr{one, two}))
	require.EqualValues(t, 2, asked.Load(), "each once, until they are looked at again")
	require.False(t, r.look())
	there = map[netip.Addr]bool{two: true}
	require.True(t, r.look())
	require.Equal(t, []netip.Addr{two}, r.Alive([]netip.Addr{one, two}))
	for _, host := range r.hosts {
		host.asked = time.Now().Add(-2 * forgetAfter)
	}
	require.False(t, r.look())
	require.Empty(t, r.hosts, "nobody wishes to know any more")
}

func TestManyHostsThatAreGoneAreAskedAtOnce(t *testing.T) {
	var gone []netip.Addr
	for i := range 50 {
		gone = append(gone, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	var asking sync.WaitGroup
	asking.Add(len(gone))
	r := NewReachability(func(netip.Addr) bool {
		asking.Done()
		asking.Wait() // for all others to be asked as well
		return false
	}, nil, func() {})
	require.Empty(t, r.Alive(gone))
}

func TestAHostThatIsThereRefusesADatagram(t *testing.T) {
	require.True(t, AskHost(netip.MustParseAddr("127.0.0.1")))
}
