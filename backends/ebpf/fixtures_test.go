package ebpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/core/model"
)

// flowFixtures test how flows begin, continue and end.
var flowFixtures = []fixture{
	{name: "a flow goes to a node and its answers come from the VIP", run: func(x *exchange) {
		s := x.open(portPlain)
		x.mustReachClient(x.reply(s, ack), portPlain)
	}},
	{name: "the client's port is kept if it is in the range of source ports", run: func(x *exchange) {
		x.client = netip.AddrPortFrom(x.client.Addr(), 20000+lastClientPort)
		require.Equal(x, x.client.Port(), x.mustReachNode(x.firstFrame(portPlain)).from.Port())
	}},
	{name: "two clients with the same port get different ports", run: func(x *exchange) {
		x.client = netip.AddrPortFrom(x.client.Addr(), 20000+lastClientPort)
		first := x.mustReachNode(x.firstFrame(portSticky))
		for range 8 {
			second := x.exchange(x.v4, x.protocol)
			second.client = netip.AddrPortFrom(x.client.Addr().Next(), x.client.Port())
			then := second.mustReachNode(second.firstFrame(portSticky))
			require.NotEqual(x, [2]netip.AddrPort{first.from, first.to}, [2]netip.AddrPort{then.from, then.to})
		}
	}},
	{name: "a repeated first packet goes to the same node from the same port", run: func(x *exchange) {
		require.Equal(x, x.mustReachNode(x.firstFrame(portPlain)).from, x.mustReachNode(x.firstFrame(portPlain)).from)
	}},
	{name: "a node's packet of no flow is left to the host", run: func(x *exchange) {
		f := frame{from: netip.AddrPortFrom(theNode[x.v4], portOfNodes), to: netip.AddrPortFrom(theGateway[x.v4], 2000), toMAC: x.back.HardwareAddr, protocol: x.protocol, flags: ack}
		o := x.fromNode(f)
		require.Equal(x, left, o.verdict)
	}},
	{name: "a client with affinity stays at one node", run: func(x *exchange) {
		first := x.mustReachNode(x.firstFrame(portSticky)).to
		for range 8 {
			x.client = netip.AddrPortFrom(x.client.Addr(), x.client.Port()+1000)
			require.Equal(x, first, x.mustReachNode(x.firstFrame(portSticky)).to)
		}
	}},
	{name: "an allowed client is served", run: func(x *exchange) { x.open(portRanged) }},
	{name: "a client that is not allowed is dropped", run: func(x *exchange) {
		x.client = netip.AddrPortFrom(netip.MustParseAddr(map[bool]string{true: "192.0.2.200", false: "2001:db8:c:1::1"}[x.v4]), 40000)
		x.mustDrop(x.firstFrame(portRanged), "source-range")
	}},
	{name: "a transparent frontend's node sees the client, and its answers come from the VIP", run: func(x *exchange) {
		f := x.firstFrame(portTransparent)
		s := x.mustSend(f, x.fromClient(f))
		require.Equal(x, x.client, s.from)
		require.EqualValues(x, portOfNodes, s.to.Port())
		x.mustReachClient(x.reply(s, syn|ack), portTransparent)
	}},
	{name: "a transparent frontend accepts a connection whose start it has not seen", only: tcp, run: func(x *exchange) {
		f := x.nextFrame(portTransparent, ack)
		require.Equal(x, x.client, x.mustSend(f, x.fromClient(f)).from)
	}},
	{name: "a direct frontend's packet changes nothing but its MAC", run: func(x *exchange) {
		f := x.firstFrame(portDirect)
		for range 2 {
			o := x.fromClient(f)
			require.Equal(x, sent, o.verdict)
			require.Equal(x, f.bytes()[14:], o.frame[14:])
			if o.byXDP {
				require.Equal(x, nodeMAC, net.HardwareAddr(o.frame[:6]))
			}
		}
	}},
	{name: "an unknown connection is reset", only: tcp, run: func(x *exchange) {
		f := x.nextFrame(portPlain, ack)
		f.acked = 4711
		x.mustRefuse(f)
	}},
	{name: "a packet of an unknown connection is redirected to the next gateway", only: tcp, run: func(x *exchange) {
		pools, frontends := fixtures()
		for i := range frontends {
			if frontends[i].Protocol == model.TCP && frontends[i].Forwarding == model.NAT {
				frontends[i].Redirect = model.Redirect{Next: theNode[frontends[i].VIP.Is4()], Limit: 3}
			}
		}
		x.apply(pools, frontends...)
		x.open(portPlain)
		for _, flags := range []uint8{ack, fin | ack, rst, syn | ack} {
			x.client = netip.AddrPortFrom(x.client.Addr(), x.client.Port()+1000)
			f := x.nextFrame(portPlain, flags)
			o := x.fromClient(f)
			s := x.mustSendWith(254, f, o)
			require.Equal(x, x.client, s.from)
			require.Equal(x, x.vip(portPlain), s.to)
			require.False(x, o.byXDP)
		}
		unknown := x.nextFrame(portPlain, ack)
		for comes, goes := range map[uint8]uint8{255: 254, 254: 253, 253: 252, 239: 254, 2: 254} {
			unknown.ttl = comes
			x.mustSendWith(goes, unknown, x.fromClient(unknown))
		}
		for _, comes := range []uint8{252, 251, 240} {
			unknown.ttl = comes
			x.mustRefuse(unknown)
		}
		for i := range frontends {
			frontends[i].Redirect = model.Redirect{}
		}
		x.apply(pools, frontends...)
		x.mustRefuse(x.nextFrame(portPlain, ack))
	}},
	{name: "a connection continues after its node is removed from the pool, and expires", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.applyWithout(s.to.Addr())
		require.Equal(x, s.to, x.mustReachNode(x.nextFrame(portPlain, ack)).to)
		x.mustReachClient(x.reply(s, ack), portPlain)
		x.advance(30 * time.Hour)
		x.sweep()
		x.mustRefuse(x.nextFrame(portPlain, ack))
	}},
	{name: "a SYN between the ports of a connection begins another one if its node is removed from the pool and silent", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		require.True(x, x.isProven(portPlain))
		x.mustReachClient(x.reply(s, ack), portPlain)
		x.applyWithout(s.to.Addr())
		for range 2 {
			x.advance(10 * time.Second)
			require.Equal(x, s.to, x.mustReachNode(x.firstFrame(portPlain)).to, "the node has answered")
			x.mustReachClient(x.reply(s, ack), portPlain)
		}
		require.Equal(x, s.to, x.mustReachNode(x.firstFrame(portPlain)).to, "the node has just answered")
		x.advance(10 * time.Second)
		require.Equal(x, s.to, x.mustReachNode(x.firstFrame(portPlain)).to)
		x.advance(10 * time.Second)
		require.NotEqual(x, s.to, x.mustReachNode(x.firstFrame(portPlain)).to)
	}},
	{name: "a client with affinity keeps its node when the frontend gets another pool that has it", run: func(x *exchange) {
		x.applyOne(portSticky, "first", theNode)
		s := x.mustReachNode(x.firstFrame(portSticky))
		require.Equal(x, theNode[x.v4], s.to.Addr())
		x.applyOne(portSticky, "second", theNode, otherNode)
		for range 8 {
			x.client = netip.AddrPortFrom(x.client.Addr(), x.client.Port()+1000)
			require.Equal(x, s.to, x.mustReachNode(x.firstFrame(portSticky)).to)
		}
		x.applyOne(portSticky, "third", otherNode)
		require.Equal(x, otherNode[x.v4], x.mustReachNode(x.firstFrame(portSticky)).to.Addr())
	}},
	{name: "an unanswered connection gets another node if its own is removed from the pool", only: tcp, run: func(x *exchange) {
		s := x.mustReachNode(x.firstFrame(portPlain))
		x.applyWithout(s.to.Addr())
		require.NotEqual(x, s.to, x.mustReachNode(x.firstFrame(portPlain)).to)
	}},
	{name: "an answer of a removed node reaches the client, until the client's datagrams go to another node", only: udp, run: func(x *exchange) {
		s := x.mustReachNode(x.firstFrame(portPlain))
		x.applyWithout(s.to.Addr())
		x.mustReachClient(x.reply(s, 0), portPlain)
		other := x.mustReachNode(x.firstFrame(portPlain))
		require.NotEqual(x, s.to, other.to)
		require.Equal(x, left, x.fromNode(x.reply(s, 0)).verdict)
		x.mustReachClient(x.reply(other, 0), portPlain)
	}},
	{name: "datagrams go to another node if their node is removed from the pool", only: udp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.applyWithout(s.to.Addr())
		require.NotEqual(x, s.to, x.mustReachNode(x.firstFrame(portPlain)).to)
	}},
	{name: "packets of a flow are refused after its frontend is deleted", run: func(x *exchange) {
		x.open(portPlain)
		pools, frontends := fixtures()
		x.apply(pools, without(frontends, portPlain)...)
		x.mustRefuse(x.nextFrame(portPlain, ack))
	}},
	{name: "a SYN between the ports of a closed connection begins a new one", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.mustReachNode(x.nextFrame(portPlain, fin|ack))
		x.mustReachClient(x.reply(s, fin|ack), portPlain)
		require.Equal(x, s.from, x.mustReachNode(x.nextFrame(portPlain, ack)).from, "the last acknowledgement")
		x.advance(3 * time.Second)
		x.mustReachNode(x.firstFrame(portPlain))
	}},
	{name: "a SYN between the ports of a connection that the node has reset begins a new one", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.mustReachClient(x.reply(s, rst|ack), portPlain)
		x.advance(3 * time.Second)
		x.mustReachNode(x.firstFrame(portPlain))
	}},
	{name: "the source port of a reset connection is not used again while connection tracking of the node may have it", only: tcp, run: func(x *exchange) {
		x.client = netip.AddrPortFrom(x.client.Addr(), 20000+lastClientPort)
		s := x.open(portPlain)
		x.mustReachClient(x.reply(s, rst|ack), portPlain)
		other := x.client.Addr()
		nextOfTheNode := func() netip.AddrPort {
			for {
				other = other.Next()
				client := x.exchange(x.v4, x.protocol)
				client.client = netip.AddrPortFrom(other, x.client.Port())
				if then := client.mustReachNode(client.firstFrame(portPlain)); then.to == s.to {
					return then.from
				}
			}
		}
		x.advance(9 * time.Second)
		require.NotEqual(x, s.from, nextOfTheNode())
		x.advance(5 * time.Second)
		require.Equal(x, s.from, nextOfTheNode())
	}},
	{name: "a reset by a client does not end the connection", only: tcp, run: func(x *exchange) {
		s := x.open(portPlain)
		x.mustReachNode(x.nextFrame(portPlain, rst))
		require.Equal(x, s.from, x.mustReachNode(x.nextFrame(portPlain, ack)).from)
		x.mustReachClient(x.reply(s, ack), portPlain)
	}},
	{name: "a node's answer reaches its client after the client's entry was evicted", run: func(x *exchange) {
		s := x.mustReachNode(x.firstFrame(portPlain))
		require.NoError(x, x.backend.kernel.objects.YoungFlows.Delete(x.key(portPlain)))
		x.mustReachClient(x.reply(s, syn|ack), portPlain)
		require.Equal(x, s.from, x.mustReachNode(x.nextFrame(portPlain, ack)).from)
	}},
	{name: "a flow that was quiet continues by the slow path, which checks the next hop", run: func(x *exchange) {
		s := x.open(portPlain)
		x.advance(20 * time.Second)
		o := x.fromClient(x.nextFrame(portPlain, ack))
		require.Equal(x, sent, o.verdict)
		require.False(x, o.byXDP)
		require.Equal(x, s.from, dissect(o.frame).from)
	}},
	{name: "packets to a node with an unknown MAC take the slow path", run: func(x *exchange) {
		x.neighbours(netlink.NeighDel)
		defer x.neighbours(netlink.NeighSet)
		x.expireRoutes()
		f := x.firstFrame(portPlain)
		o := x.fromClient(f)
		require.False(x, o.byXDP)
		x.mustSend(f, o)
	}},
	{name: "a route is cached for a tick, then it is looked up again", run: func(x *exchange) {
		x.open(portPlain)
		remembers := func() bool {
			x.expireRoutes()
			first := x.fromClient(x.nextFrame(portPlain, ack))
			x.neighbours(netlink.NeighDel)
			defer x.neighbours(netlink.NeighSet)
			return first.byXDP == x.fromClient(x.nextFrame(portPlain, ack)).byXDP
		}
		// On a busy machine the tick may be over before the next packet.
		x.eventually(remembers, "the second packet uses the cached route")
		x.neighbours(netlink.NeighDel)
		defer x.neighbours(netlink.NeighSet)
		x.expireRoutes()
		require.False(x, x.fromClient(x.nextFrame(portPlain, ack)).byXDP)
	}},
	{name: "a packet that is too big for a cached route is reported to the client", run: func(x *exchange) {
		x.open(portPlain)
		x.fromClient(x.nextFrame(portPlain, ack))
		f := x.nextFrame(portPlain, ack)
		f.payload = make([]byte, 2000)
		x.mustAnswer(f, "too-big")
	}},
	{name: "without a route to the node the packet is dropped", run: func(x *exchange) {
		x.open(portPlain)
		down := func(up bool) {
			l, err := netlink.LinkByName("back")
			require.NoError(x, err)
			set := netlink.LinkSetDown
			if up {
				set = netlink.LinkSetUp
			}
			require.NoError(x, set(l))
		}
		down(false)
		defer func() {
			down(true)
			require.NoError(x, x.prepareAddresses())
		}()
		x.expireRoutes()
		x.mustDrop(x.nextFrame(portPlain, ack), "no-route")
	}},
	{name: "during a purge new flows are left to the host, and known flows continue", run: func(x *exchange) {
		s := x.open(portPlain)
		x.setClosing(1)
		defer x.setClosing(0)
		other := x.exchange(x.v4, x.protocol)
		other.mustLeaveToHost(other.firstFrame(portPlain))
		require.Equal(x, s.from, x.mustReachNode(x.nextFrame(portPlain, ack)).from)
		x.mustReachClient(x.reply(s, ack), portPlain)
	}},
	{name: "later fragments follow the first one", run: func(x *exchange) {
		x.fragments(portPlain)
	}},
	{name: "fragments of a direct frontend's packet are forwarded", run: func(x *exchange) {
		first, later := x.pieces(portDirect)
		for _, f := range []frame{first, later} {
			o := x.fromClient(f)
			require.Equal(x, sent, o.verdict)
			require.Equal(x, f.bytes()[14:], o.frame[14:])
		}
	}},
	{name: "a fragment without the first one is dropped", run: func(x *exchange) {
		_, later := x.pieces(portPlain)
		x.mustDrop(later, "fragment-without-first")
	}},
	{name: "a fragmented answer of a node reaches the client", run: func(x *exchange) {
		s := x.open(portPlain)
		first := x.reply(s, ack)
		first.payload, first.more, first.id = make([]byte, 64), true, 77
		later := first
		later.more, later.offset, later.raw = false, 64+8, []byte("the rest")
		x.mustReachClient(first, portPlain)
		o := x.fromNode(later)
		require.Equal(x, sent, o.verdict)
		require.Equal(x, x.client.Addr(), dissect(o.frame).to.Addr())
	}},
	{name: "bytes after the packet are kept", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.payload = []byte{1}
		whole := append(f.bytes(), 0xee, 0xee, 0xee)
		o := x.receive(x.front, whole)
		require.Equal(x, sent, o.verdict)
		require.Equal(x, []byte{0xee, 0xee, 0xee}, o.frame[len(o.frame)-3:])
		require.Empty(x, dissect(o.frame).errors)
	}},
	{name: "options of the IP header are kept", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.options = []byte{1, 1, 1, 0}
		if !x.v4 {
			f.options, f.extension = []byte{x.protocol, 0, 1, 4, 0, 0, 0, 0}, 60
		}
		s := x.mustReachNode(f)
		x.mustReachClient(x.reply(s, syn|ack), portPlain)
	}},
	{name: "a datagram without a checksum is forwarded without one", only: udp, run: func(x *exchange) {
		if !x.v4 {
			return // IPv6 requires a checksum
		}
		f := x.firstFrame(portPlain)
		f.noChecksum = true
		o := x.fromClient(f)
		require.Equal(x, sent, o.verdict)
		require.Zero(x, binary.BigEndian.Uint16(o.frame[14+20+6:]))
	}},
	{name: "a new UDP checksum of zero is sent as 0xffff", only: udp, run: func(x *exchange) {
		x.open(portPlain)
		for n := range 1 << 16 {
			f := x.nextFrame(portPlain, 0)
			f.payload = binary.BigEndian.AppendUint16(nil, uint16(n))
			o := x.fromClient(f)
			s := dissect(o.frame)
			require.Empty(x, s.errors)
			at := 14 + 20 + 6
			if !x.v4 {
				at += 20
			}
			switch binary.BigEndian.Uint16(o.frame[at:]) {
			case 0:
				require.Fail(x, "a checksum of zero means that there is none")
			case 0xffff:
				return
			}
		}
		require.Fail(x, "no payload made the checksum zero")
	}},
}

// applyWithout applies the fixtures without a node.
func (x *exchange) applyWithout(node netip.Addr) {
	pools, frontends := fixtures()
	for i := range pools {
		var stay []model.Endpoint
		for _, e := range pools[i].Endpoints {
			if e.Address != node {
				stay = append(stay, e)
			}
		}
		pools[i].Endpoints = stay
	}
	x.apply(pools, frontends...)
}

// applyOne applies the fixtures with another pool for one frontend.
func (x *exchange) applyOne(port uint16, name string, nodes ...map[bool]netip.Addr) {
	pools, frontends := fixtures()
	pool := model.Pool{ID: model.PoolID("a/" + name), Tenant: "a"}
	for i, node := range nodes {
		pool.Endpoints = append(pool.Endpoints, model.Endpoint{ID: fmt.Sprintf("n%d", i+1), Address: node[x.v4], Weight: 1})
	}
	for i := range frontends {
		if frontends[i].Port == port && frontends[i].VIP.Is4() == x.v4 {
			frontends[i].Pool = pool.ID
		}
	}
	x.apply(append(pools, pool), frontends...)
}

func without(frontends []model.Frontend, port uint16) (out []model.Frontend) {
	for _, f := range frontends {
		if f.Port != port {
			out = append(out, f)
		}
	}
	return out
}

// key is the key of the client's flow.
func (x *exchange) key(port uint16) tuple {
	return tuple{Source: addressOf(x.client.Addr()), Destination: addressOf(theVIP[x.v4]), SourcePort: portOf(x.client.Port()), DestinationPort: portOf(port), Protocol: x.protocol, Family: familyOf(x.client.Addr())}
}

// pieces are two fragments of a datagram or segment.
func (x *exchange) pieces(port uint16) (first, later frame) {
	first = x.firstFrame(port)
	first.payload, first.more, first.id = make([]byte, 64), true, 1000+uint32(lastClientPort)
	later = first
	later.more, later.offset, later.raw = false, 64+24, []byte("the rest")
	return first, later
}

func (x *exchange) fragments(port uint16) {
	first, later := x.pieces(port)
	s := x.mustReachNode(first)
	o := x.fromClient(later)
	require.Equal(x, sent, o.verdict)
	then := dissect(o.frame)
	require.Empty(x, then.errors)
	require.Equal(x, s.to.Addr(), then.to.Addr())
	require.Equal(x, s.from.Addr(), then.from.Addr())
	require.Equal(x, later.raw, then.payload)
}
