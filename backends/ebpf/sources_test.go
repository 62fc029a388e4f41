package ebpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/routes"
)

// otherGatewayAddress is the gateway's other address on the nodes' segment.
var otherGatewayAddress = addresses("198.51.100.2", "2001:db8:1::2")

// addPreferredAddress adds otherGatewayAddress to the gateway, and routes to nodes that prefer it.
func (b *testGateway) addPreferredAddress() {
	b.Helper()
	back, err := netlink.LinkByName("back")
	require.NoError(b, err)
	for v4, a := range otherGatewayAddress {
		require.NoError(b, netlink.AddrAdd(back, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}))
		segment := netip.PrefixFrom(a, map[bool]int{true: 24, false: 64}[v4]).Masked()
		route := &netlink.Route{LinkIndex: back.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: a.AsSlice(), Dst: &net.IPNet{IP: segment.Addr().AsSlice(), Mask: net.CIDRMask(segment.Bits(), a.BitLen())}}
		if !v4 {
			route.Scope, route.Priority = netlink.SCOPE_UNIVERSE, 1 // preferred to the kernel's route
		}
		require.NoError(b, netlink.RouteReplace(route))
	}
}

// removeFirstAddress removes the gateway's first address.
func (b *testGateway) removeFirstAddress() {
	b.Helper()
	back, err := netlink.LinkByName("back")
	require.NoError(b, err)
	for v4, a := range theGateway {
		require.NoError(b, netlink.AddrDel(back, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(map[bool]int{true: 24, false: 64}[v4], a.BitLen())}}))
	}
}

// pollChanges makes the backend poll as after a change of routes.
func (b *testGateway) pollChanges() error {
	b.backend.routes = routes.Changes{}
	return b.backend.poll(false)
}

// all returns an exchange for each family and protocol.
func (b *testGateway) all() (all []*exchange) {
	for _, v4 := range []bool{true, false} {
		for _, protocol := range []uint8{tcp, udp} {
			all = append(all, b.exchange(v4, protocol))
		}
	}
	return all
}

// mustOpenFrom opens a flow, and requires that it has this source address, and that the answer reaches the client.
func (x *exchange) mustOpenFrom(from netip.Addr) seen {
	f := x.firstFrame(portPlain)
	s := x.mustSend(f, x.fromClient(f))
	require.Equal(x, from, s.from.Addr())
	x.mustReachClient(x.reply(s, syn|ack), portPlain)
	return s
}

// mustContinueFrom requires that the next packet of the flow has this source address.
func (x *exchange) mustContinueFrom(from netip.Addr) {
	f := x.nextFrame(portPlain, ack)
	require.Equal(x, from, x.mustSend(f, x.fromClient(f)).from.Addr())
}

func TestNewFlowsUseTheCurrentSourceAddressTowardsTheNode(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.withoutXDP = true
		b.serveFixtures()
		olds := b.all()
		for _, x := range olds {
			x.mustOpenFrom(theGateway[x.v4])
		}
		b.addPreferredAddress()
		require.NoError(b, b.pollChanges())
		for _, x := range b.all() {
			x.mustOpenFrom(otherGatewayAddress[x.v4])
		}
		for _, x := range olds {
			x.mustContinueFrom(map[uint8]netip.Addr{tcp: theGateway[x.v4], udp: otherGatewayAddress[x.v4]}[x.protocol])
		}
		digests := b.backend.state.digests()
		require.NoError(b, b.pollChanges())
		require.Equal(b, digests, b.backend.state.digests(), "the records have not changed")

		b.removeFirstAddress()
		require.NoError(b, b.pollChanges())
		for _, x := range olds {
			if x.protocol == tcp {
				x.mustRefuse(x.nextFrame(portPlain, ack))
			}
		}
		for _, x := range b.all() {
			x.mustOpenFrom(otherGatewayAddress[x.v4])
		}
		require.Empty(b, b.backend.state.removed)
	})
}

func TestARestartedGatewayNoticesThatItsSourceAddressHasChanged(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.withoutXDP = true
		b.serveFixtures()
		require.NoError(b, b.backend.Close(b.Context(), false))
		b.addPreferredAddress()
		b.start(b.options())
		b.serveFixtures()
		for _, x := range b.all() {
			x.mustOpenFrom(otherGatewayAddress[x.v4])
		}
	})
}

func TestAChangedSourceAddressRequestsThePoolsOfAnEarlierProcess(t *testing.T) {
	onGateway(t, func(b *testGateway) {
		b.withoutXDP = true
		b.serveFixtures()
		require.NoError(b, b.backend.Close(b.Context(), false))
		b.start(b.options())
		b.addPreferredAddress()
		require.ErrorIs(b, b.pollChanges(), errPoolsNeeded)
		require.NoError(b, b.backend.Close(b.Context(), false))
		b.start(b.options()) // as the manager does after a fault with Resync
		b.serveFixtures()
		for _, x := range b.all() {
			x.mustOpenFrom(otherGatewayAddress[x.v4])
		}
		require.NoError(b, b.pollChanges())
	})
}
