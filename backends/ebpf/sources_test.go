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

// theNext is the gateway's other address on the nodes' segment.
var theNext = addresses("198.51.100.2", "2001:db8:1::2")

// prefer gives the gateway its other address, and has its routes to nodes prefer that.
func (b *bench) prefer() {
	b.Helper()
	back, err := netlink.LinkByName("back")
	require.NoError(b, err)
	for v4, a := range theNext {
		require.NoError(b, netlink.AddrAdd(back, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}))
		segment := netip.PrefixFrom(a, map[bool]int{true: 24, false: 64}[v4]).Masked()
		route := &netlink.Route{LinkIndex: back.Attrs().Index, Scope: netlink.SCOPE_LINK, Src: a.AsSlice(), Dst: &net.IPNet{IP: segment.Addr().AsSlice(), Mask: net.CIDRMask(segment.Bits(), a.BitLen())}}
		if !v4 {
			route.Scope, route.Priority = netlink.SCOPE_UNIVERSE, 1 // before the kernel's own
		}
		require.NoError(b, netlink.RouteReplace(route))
	}
}

// loseFormer takes the gateway its first address.
func (b *bench) loseFormer() {
	b.Helper()
	back, err := netlink.LinkByName("back")
	require.NoError(b, err)
	for v4, a := range theGateway {
		require.NoError(b, netlink.AddrDel(back, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(map[bool]int{true: 24, false: 64}[v4], a.BitLen())}}))
	}
}

// notices has the backend look, as if it had heard that something has changed.
func (b *bench) notices() error {
	b.backend.routes = routes.Changes{}
	return b.backend.look(false)
}

// all are exchanges of both families and protocols.
func (b *bench) all() (all []*exchange) {
	for _, v4 := range []bool{true, false} {
		for _, protocol := range []uint8{tcp, udp} {
			all = append(all, b.exchange(v4, protocol))
		}
	}
	return all
}

// begins opens a flow, and requires that it comes to the node from the address, and its answer to the client.
func (x *exchange) begins(from netip.Addr) seen {
	f := x.ask(portPlain)
	s := x.mustSend(f, x.fromClient(f))
	require.Equal(x, from, s.from.Addr())
	x.mustReachClient(x.reply(s, syn|ack), portPlain)
	return s
}

// goesOn requires that the next packet of the flow comes to the node from the address.
func (x *exchange) goesOn(from netip.Addr) {
	f := x.goOn(portPlain, ack)
	require.Equal(x, from, x.mustSend(f, x.fromClient(f)).from.Addr())
}

func TestNewFlowsComeFromTheAddressThatTheGatewayHasTowardsTheNodeNow(t *testing.T) {
	onBench(t, func(b *bench) {
		b.withoutXDP = true
		b.serveFixtures()
		olds := b.all()
		for _, x := range olds {
			x.begins(theGateway[x.v4])
		}
		b.prefer()
		require.NoError(b, b.notices())
		for _, x := range b.all() {
			x.begins(theNext[x.v4])
		}
		for _, x := range olds {
			x.goesOn(map[uint8]netip.Addr{tcp: theGateway[x.v4], udp: theNext[x.v4]}[x.protocol])
		}
		digests := b.backend.state.digests()
		require.NoError(b, b.notices())
		require.Equal(b, digests, b.backend.state.digests(), "the records are the same")

		b.loseFormer()
		require.NoError(b, b.notices())
		for _, x := range olds {
			if x.protocol == tcp {
				x.mustRefuse(x.goOn(portPlain, ack))
			}
		}
		for _, x := range b.all() {
			x.begins(theNext[x.v4])
		}
		require.Empty(b, b.backend.state.left)
	})
}

func TestAGatewayThatIsStartedAgainKnowsThatItsAddressIsAnotherOne(t *testing.T) {
	onBench(t, func(b *bench) {
		b.withoutXDP = true
		b.serveFixtures()
		require.NoError(b, b.backend.Close(b.Context(), false))
		b.prefer()
		b.start(b.options())
		b.serveFixtures()
		for _, x := range b.all() {
			x.begins(theNext[x.v4])
		}
	})
}

func TestPoolsOfAnEarlierProcessAreAskedForAgainWhenTheAddressChanges(t *testing.T) {
	onBench(t, func(b *bench) {
		b.withoutXDP = true
		b.serveFixtures()
		require.NoError(b, b.backend.Close(b.Context(), false))
		b.start(b.options())
		b.prefer()
		require.ErrorIs(b, b.notices(), errGiveAgain)
		require.NoError(b, b.backend.Close(b.Context(), false))
		b.start(b.options()) // as the manager does
		b.serveFixtures()
		for _, x := range b.all() {
			x.begins(theNext[x.v4])
		}
		require.NoError(b, b.notices())
	})
}
