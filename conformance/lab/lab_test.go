package lab

import (
	"net/netip"
	"testing"
	"time"

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
			flow, err := client.Dial("udp", to, From{})
			require.NoError(t, err)
			for _, size := range []int{0, 1, 1472, 1473, LargestPayload(v4)} {
				require.NoError(t, client.Echo(flow, size))
				require.NoError(t, client.PingOfSize(to.Addr(), size))
			}
			require.NoError(t, flow.Close())
		}
	}
}

// Hosts learn that a link is narrow, so that a failure of path-mtu is a fault of the dataplane.
func TestHostsOfTheLabLearnThatALinkIsNarrow(t *testing.T) {
	l, err := New(1)
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	s, err := l.A.Serve(30080)
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, l.NarrowPathToB(1300))
	for _, v4 := range []bool{true, false} {
		to := netip.AddrPortFrom(l.A.Address(v4), 30080)
		require.NoError(t, l.B.FittingFragments(to))
		mtu, err := l.B.FittingDatagrams(to)
		require.NoError(t, err)
		require.Equal(t, 1500, mtu, "only answers pass the narrow link")
		require.NoError(t, l.B.Transfer(to, 1<<20))
	}
}

// An ICMP error arrives as it was sent, and a wrong checksum is noticed.
func TestICMPErrorsArriveAsTheyWereSent(t *testing.T) {
	l, err := New(1)
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	for _, v4 := range []bool{true, false} {
		received, err := l.A.ReceiveICMPErrors()
		require.NoError(t, err)
		sent := ICMPError{ICMPErrorKind: TooBig(v4, 1300), From: l.Router.Address(v4), To: l.A.Address(v4)}
		sent.Quoted = sent.bytes()
		wrong := sent
		wrong.Invalid = "the ICMP checksum"
		require.NoError(t, l.Router.SendICMPErrors(sent, wrong))
		got, ok := received.Next(time.Second)
		require.True(t, ok)
		require.Equal(t, sent, got)
		got, ok = received.Next(time.Second)
		require.True(t, ok)
		require.NotEmpty(t, got.Invalid)
		require.Empty(t, received.Close())
	}
}
