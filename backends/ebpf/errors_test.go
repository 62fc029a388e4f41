package ebpf

import (
	"net/netip"

	"github.com/stretchr/testify/require"
)

// icmpError is an ICMP error that from sends to to about a packet.
func (x *exchange) icmpError(from netip.Addr, to netip.Addr, kind, code uint8, second uint32, quoted []byte) frame {
	f := frame{from: netip.AddrPortFrom(from, 0), to: netip.AddrPortFrom(to, 0), toMAC: x.back.HardwareAddr, protocol: icmp4}
	if x.v4 {
		f.raw = icmpMessage(kind, code, second, quoted, nil)
	} else {
		f.protocol = icmp6
		f.raw = icmpMessage(kind, code, second, quoted, &f)
	}
	return f
}

// icmpErrors are the types and codes for unreachable, too big, time exceeded, and a parameter problem.
func icmpErrors(v4 bool) [][2]uint8 {
	if v4 {
		return [][2]uint8{{3, 1}, {3, 4}, {11, 0}, {12, 0}}
	}
	return [][2]uint8{{1, 0}, {2, 0}, {3, 0}, {4, 0}}
}

// mustPassError requires that an error about a client's packet reaches the client, with the addresses of that packet.
func (x *exchange) mustPassError(f frame, o outcome, port uint16) seen {
	require.Equal(x, sent, o.verdict)
	s := dissect(o.frame)
	require.Empty(x, s.errors, "%x became %x", f.bytes(), o.frame)
	require.Equal(x, x.client.Addr(), s.to.Addr())
	inner := dissectQuoted(s.payload, x.v4)
	require.Equal(x, x.client, inner.from)
	require.Equal(x, x.vip(port), inner.to)
	return s
}

// dissectQuoted parses addresses and ports of a quoted packet.
func dissectQuoted(packet []byte, v4 bool) (s seen) {
	at, from, to := 40, 8, 24
	if v4 {
		at, from, to = int(packet[0]&15)*4, 12, 16
	}
	source, _ := netip.AddrFromSlice(packet[from : from+(to-from)])
	destination, _ := netip.AddrFromSlice(packet[to : to+(to-from)])
	port := func(at int) uint16 { return uint16(packet[at])<<8 | uint16(packet[at+1]) }
	return seen{from: netip.AddrPortFrom(source, port(at)), to: netip.AddrPortFrom(destination, port(at+2))}
}

// errorFixtures test ICMP errors.
var errorFixtures = []fixture{
	{name: "an error of a router behind the gateway reaches the client", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		o := x.fromClient(f)
		require.Equal(x, sent, o.verdict)
		for _, kind := range icmpErrors(x.v4) {
			e := x.icmpError(theRouter[x.v4], theGateway[x.v4], kind[0], kind[1], 1400, o.frame[14:])
			s := x.mustPassError(e, x.fromNode(e), portPlain)
			require.Equal(x, kind, [2]uint8{s.icmpType, s.icmpCode})
			require.Equal(x, theVIP[x.v4], s.from.Addr(), "the client does not see the router")
		}
	}},
	{name: "an error that quotes only the ports reaches the client", run: func(x *exchange) {
		o := x.fromClient(x.firstFrame(portPlain))
		n := 14 + 40 + 8
		if x.v4 {
			n = 14 + 20 + 8
		}
		e := x.icmpError(theRouter[x.v4], theGateway[x.v4], icmpErrors(x.v4)[1][0], 0, 1400, o.frame[14:n])
		x.mustPassError(e, x.fromNode(e), portPlain)
	}},
	{name: "an error about an established flow reaches the client", run: func(x *exchange) {
		x.open(portPlain)
		o := x.fromClient(x.nextFrame(portPlain, ack))
		e := x.icmpError(theNode[x.v4], theGateway[x.v4], unreachableOf(x.v4)[0], unreachableOf(x.v4)[1], 0, o.frame[14:])
		x.mustPassError(e, x.fromNode(e), portPlain)
	}},
	{name: "an error about a packet with options reaches the client", run: func(x *exchange) {
		if !x.v4 {
			return // the programs do not look for ports behind extension headers
		}
		f := x.firstFrame(portPlain)
		f.options = []byte{1, 1, 1, 0}
		o := x.fromClient(f)
		e := x.icmpError(theRouter[x.v4], theGateway[x.v4], 11, 0, 0, o.frame[14:])
		x.mustPassError(e, x.fromNode(e), portPlain)
	}},
	{name: "a client's error about an answer reaches the node", run: func(x *exchange) {
		s := x.open(portPlain)
		o := x.fromNode(x.reply(s, ack))
		e := x.icmpError(x.client.Addr(), theVIP[x.v4], icmpErrors(x.v4)[1][0], icmpErrors(x.v4)[1][1], 1300, o.frame[14:])
		e.toMAC = x.front.HardwareAddr
		out := x.fromClient(e)
		require.Equal(x, sent, out.verdict)
		then := dissect(out.frame)
		require.Empty(x, then.errors)
		require.Equal(x, s.to.Addr(), then.to.Addr())
		inner := dissectQuoted(then.payload, x.v4)
		require.Equal(x, s.to, inner.from)
		require.Equal(x, s.from, inner.to)
	}},
	{name: "an error about an answer of a direct frontend reaches the node as it is", run: func(x *exchange) {
		require.Equal(x, sent, x.fromClient(x.firstFrame(portDirect)).verdict)
		answer := frame{from: x.vip(portDirect), to: x.client, toMAC: clientMAC, protocol: x.protocol, flags: syn | ack, payload: make([]byte, 40)}
		e := x.icmpError(x.client.Addr(), theVIP[x.v4], icmpErrors(x.v4)[1][0], icmpErrors(x.v4)[1][1], 1300, answer.bytes()[14:])
		e.toMAC = x.front.HardwareAddr
		o := x.fromClient(e)
		require.Equal(x, sent, o.verdict)
		require.Equal(x, e.bytes()[14:], o.frame[14:])
	}},
	{name: "an error of a router behind the gateway about a transparent flow reaches the client", run: func(x *exchange) {
		o := x.fromClient(x.firstFrame(portTransparent))
		require.Equal(x, sent, o.verdict)
		e := x.icmpError(theNode[x.v4], x.client.Addr(), icmpErrors(x.v4)[0][0], 1, 0, o.frame[14:])
		x.mustPassError(e, x.fromNode(e), portTransparent)
	}},
	{name: "an error of a router on the way to the endpoint of a transparent flow reaches the client", run: func(x *exchange) {
		o := x.fromClient(x.firstFrame(portTransparent))
		require.Equal(x, sent, o.verdict)
		e := x.icmpError(theRouter[x.v4], x.client.Addr(), icmpErrors(x.v4)[1][0], icmpErrors(x.v4)[1][1], 1400, o.frame[14:])
		x.mustPassError(e, x.fromNode(e), portTransparent)
	}},
	{name: "an error about a fragment reaches the client", run: func(x *exchange) {
		first, _ := x.pieces(portPlain)
		o := x.fromClient(first)
		require.Equal(x, sent, o.verdict)
		e := x.icmpError(theRouter[x.v4], theGateway[x.v4], icmpErrors(x.v4)[1][0], icmpErrors(x.v4)[1][1], 1400, o.frame[14:])
		out := x.fromNode(e)
		require.Equal(x, sent, out.verdict)
		s := dissect(out.frame)
		require.Empty(x, s.errors)
		require.Equal(x, x.client.Addr(), s.to.Addr())
	}},
	{name: "an error to another address than that of the quoted packet's sender is dropped at a VIP", run: func(x *exchange) {
		s := x.open(portPlain)
		o := x.fromNode(x.reply(s, ack))
		other := netip.MustParseAddr("192.0.2.77")
		if !x.v4 {
			other = netip.MustParseAddr("2001:db8::77")
		}
		quoted := append([]byte{}, o.frame[14:]...)
		copy(quoted[map[bool]int{true: 12, false: 8}[x.v4]:], other.AsSlice())
		e := x.icmpError(x.client.Addr(), theVIP[x.v4], icmpErrors(x.v4)[1][0], icmpErrors(x.v4)[1][1], 1300, quoted)
		e.toMAC = x.front.HardwareAddr
		require.Equal(x, dropping, x.fromClient(e).verdict)
	}},
	{name: "an error about an unknown flow is dropped at a VIP, and left to the host at other addresses", run: func(x *exchange) {
		strange := frame{from: x.vip(9), to: x.client, toMAC: clientMAC, protocol: x.protocol, flags: ack}
		e := x.icmpError(x.client.Addr(), theVIP[x.v4], icmpErrors(x.v4)[1][0], 4, 1300, strange.bytes()[14:])
		e.toMAC = x.front.HardwareAddr
		require.Equal(x, dropping, x.fromClient(e).verdict)
		e = x.icmpError(theRouter[x.v4], theGateway[x.v4], icmpErrors(x.v4)[1][0], 4, 1300, strange.bytes()[14:])
		require.Equal(x, left, x.fromNode(e).verdict)
	}},
	{name: "an error that quotes too little, a later fragment, or another protocol is dropped at a VIP", run: func(x *exchange) {
		whole := frame{from: x.vip(portPlain), to: x.client, toMAC: clientMAC, protocol: x.protocol, flags: ack}
		piece := whole
		piece.offset, piece.raw = 800, make([]byte, 16)
		other := whole
		other.protocol, other.raw = 47, make([]byte, 16)
		cut := 22
		if !x.v4 {
			cut = 42
		}
		for _, quoted := range [][]byte{whole.bytes()[14 : 14+cut], piece.bytes()[14:], other.bytes()[14:], {}, make([]byte, 60)} {
			e := x.icmpError(x.client.Addr(), theVIP[x.v4], icmpErrors(x.v4)[1][0], 4, 1300, quoted)
			e.toMAC = x.front.HardwareAddr
			require.Equal(x, dropping, x.fromClient(e).verdict, "%x", quoted)
		}
	}},
	{name: "a fragmented error is dropped at a VIP", run: func(x *exchange) {
		e := x.icmpError(x.client.Addr(), theVIP[x.v4], icmpErrors(x.v4)[1][0], 4, 1300, make([]byte, 40))
		e.toMAC, e.more = x.front.HardwareAddr, true
		require.Equal(x, dropping, x.fromClient(e).verdict)
	}},
	{name: "an error with a TTL of 1 is dropped", run: func(x *exchange) {
		o := x.fromClient(x.firstFrame(portPlain))
		e := x.icmpError(theRouter[x.v4], theGateway[x.v4], icmpErrors(x.v4)[0][0], 0, 0, o.frame[14:])
		e.ttl = 1
		x.mustDropAt(x.back, e, "ttl")
	}},
}
