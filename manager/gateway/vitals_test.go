package gateway

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHostsOfFailedGatewaysAreAskedWhetherTheyAreThere(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	there, asked := map[netip.Addr]bool{one: true}, 0
	v := newVitals(func(a netip.Addr) bool {
		asked++
		return there[a]
	}, nil, func() {})
	require.Equal(t, []netip.Addr{one}, v.alive([]netip.Addr{one, two}))
	require.Equal(t, []netip.Addr{one}, v.alive([]netip.Addr{one, two}))
	require.Equal(t, 2, asked, "each once, until they are looked at again")
	require.False(t, v.look())
	there = map[netip.Addr]bool{two: true}
	require.True(t, v.look())
	require.Equal(t, []netip.Addr{two}, v.alive([]netip.Addr{one, two}))
	for _, host := range v.hosts {
		host.asked = time.Now().Add(-2 * forgetAfter)
	}
	require.False(t, v.look())
	require.Empty(t, v.hosts, "nobody wishes to know any more")
}

func TestAHostThatIsThereRefusesADatagram(t *testing.T) {
	require.True(t, askHost(netip.MustParseAddr("127.0.0.1")))
}
