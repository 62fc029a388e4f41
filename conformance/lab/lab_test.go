package lab

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// The lab carries all traffic without a dataplane, so that a failure of a case is a fault of the dataplane.
func TestTheLabCarriesEverything(t *testing.T) {
	l, err := New(1)
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	for _, n := range l.Nodes {
		s, err := n.Serve(30080)
		require.NoError(t, err)
		defer s.Close()
	}
	for _, client := range []*Host{l.A, l.B} {
		for _, v4 := range []bool{true, false} {
			for i := range endpoints {
				to := netip.AddrPortFrom(EndpointAddress(v4, i), 30080)
				for _, network := range []string{"tcp", "udp"} {
					answer, err := client.Request(network, to, From{})
					require.NoError(t, err)
					require.Equal(t, to.Addr(), answer.Endpoint)
					require.Equal(t, client.Address(v4), answer.Client.Addr())
				}
			}
			to := netip.AddrPortFrom(EndpointAddress(v4, 1), 30080)
			require.NoError(t, client.Transfer(to, 10<<20))
			stream, err := client.Stream(to, From{Port: 4000})
			require.NoError(t, err)
			require.NoError(t, stream.Alive())
			require.NoError(t, stream.Close())
			require.True(t, client.Refused("tcp", netip.AddrPortFrom(to.Addr(), 1)).Outright)
		}
	}
}
