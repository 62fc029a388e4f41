package ebpf

import (
	"net/netip"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// advance makes all flows look as if they had been quiet for longer.
func (b *testGateway) advance(by time.Duration) {
	units := uint32(by >> 30)
	type entry struct {
		key tuple
		flow
	}
	for _, m := range b.flowTables() {
		var all []entry
		var e entry
		entries := m.Iterate()
		for entries.Next(&e.key, &e.flow) {
			all = append(all, e)
		}
		require.NoError(b, entries.Err())
		for _, e := range all {
			e.Seen -= units
			require.NoError(b, m.Put(e.key, e.flow))
		}
	}
}

func (b *testGateway) sweep() {
	require.NoError(b, b.backend.sweep())
}

func (b *testGateway) setPorts(ports uint16) {
	b.backend.kernel.settings.Ports = ports
	require.NoError(b, b.backend.kernel.writeSettings())
}

func (b *testGateway) setClosing(is uint8) {
	b.backend.kernel.settings.Closing = is
	require.NoError(b, b.backend.kernel.writeSettings())
}

// neighbours sets or deletes the MAC addresses of the nodes.
func (x *exchange) neighbours(change func(*netlink.Neigh) error) {
	for _, node := range []netip.Addr{theNode[x.v4], otherNode[x.v4]} {
		require.NoError(x, change(&netlink.Neigh{LinkIndex: x.back.Index, IP: node.AsSlice(), HardwareAddr: nodeMAC, State: netlink.NUD_PERMANENT}))
	}
}

// expireRoutes waits until cached routes are not valid any more (tick in bpf/flows.h).
func (x *exchange) expireRoutes() { time.Sleep(2 << 26) }

// echo is an echo request.
func (x *exchange) echo() frame {
	f := frame{from: x.client, to: x.vip(0), toMAC: x.front.HardwareAddr}
	if x.v4 {
		f.protocol = icmp4
		f.raw = icmpMessage(8, 0, 0x12345678, []byte("are you there?"), nil)
	} else {
		f.protocol = icmp6
		f.raw = icmpMessage(128, 0, 0x12345678, []byte("are you there?"), &f)
	}
	return f
}

// echoPieces are two fragments of an echo request.
func (x *exchange) echoPieces() (first, later frame) {
	first = x.echo()
	first.raw = append(first.raw, make([]byte, 42)...) // a multiple of eight bytes
	first.more, first.id = true, 2000+uint32(lastClientPort)
	later = first
	later.more, later.offset, later.raw = false, uint16(len(first.raw)), []byte("the rest")
	return first, later
}

// mustAnswerPiece requires that a fragment is sent back with the same number and offset, and returns the frame.
func (x *exchange) mustAnswerPiece(f frame) []byte {
	o := x.receive(x.front, f.bytes())
	require.Equal(x, answered, o.verdict)
	s := dissect(o.frame)
	require.Equal(x, f.from.Addr(), s.to.Addr())
	require.Equal(x, f.to.Addr(), s.from.Addr())
	fields := [2]int{14 + 4, 14 + 8}
	if !x.v4 {
		fields = [2]int{14 + 40, 14 + 48}
	}
	require.Equal(x, f.bytes()[fields[0]:fields[1]], o.frame[fields[0]:fields[1]])
	return o.frame
}

// icmpMessage returns an ICMP message. v6 is the frame if it is of IPv6, whose checksum covers a pseudo-header.
func icmpMessage(kind, code uint8, second uint32, body []byte, v6 *frame) []byte {
	out := append([]byte{kind, code, 0, 0, byte(second >> 24), byte(second >> 16), byte(second >> 8), byte(second)}, body...)
	sum := foldChecksum(addBytes(0, append(append([]byte{}, out...), make([]byte, len(out)%2)...)))
	if v6 != nil {
		sum = checksum(v6.from.Addr(), v6.to.Addr(), icmp6, out)
	}
	out[2], out[3] = byte(sum>>8), byte(sum)
	return out
}

// mustBeLimited tells whether packets of a client that sends all the time were dropped. On a slow machine the client may stay below the limit.
func (x *exchange) mustBeLimited(ask func() frame) bool {
	begin := time.Now()
	for range 4 * answerBurst {
		if x.fromClient(ask()).verdict == dropping {
			return true
		}
	}
	require.Greater(x, answerBurst+time.Since(begin).Seconds()*answersPerSecond, 4.0*answerBurst, "nothing was dropped")
	return false
}

// answerFixtures test answers by the gateway itself.
var answerFixtures = []fixture{
	{name: "a port without a frontend is refused", run: func(x *exchange) { x.mustRefuse(x.firstFrame(portOther)) }},
	{name: "a frontend whose pool has no endpoints is refused", run: func(x *exchange) { x.mustRefuse(x.firstFrame(portEmpty)) }},
	{name: "a reset for a port without a frontend is dropped", only: tcp, run: func(x *exchange) { x.mustDrop(x.nextFrame(portOther, rst), "no-flow") }},
	{name: "a packet with options is refused", run: func(x *exchange) {
		f := x.firstFrame(portOther)
		f.options = []byte{1, 1, 1, 0}
		if !x.v4 {
			f.options, f.extension = []byte{x.protocol, 0, 1, 4, 0, 0, 0, 0}, 0
		}
		x.mustRefuse(f)
	}},
	{name: "packets to a port without a frontend are dropped beyond the limit", run: func(x *exchange) {
		if x.mustBeLimited(func() frame { return x.firstFrame(portOther) }) {
			require.NotZero(x, x.drops()["rate"])
		}
	}},
	{name: "a packet with a TTL of 1 is reported to the client", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.ttl = 1
		kind := [2]uint8{11, 0}
		if !x.v4 {
			kind = [2]uint8{3, 0}
		}
		x.mustReport(x.mustAnswer(f, "ttl"), kind, f)
	}},
	{name: "a packet that is too big for the route is reported to the client", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.payload = make([]byte, 2000)
		kind := [2]uint8{3, 4}
		if !x.v4 {
			kind = [2]uint8{2, 0}
		}
		x.mustReport(x.mustAnswer(f, "too-big"), kind, f)
	}},
	{name: "an echo request to a VIP is answered", only: udp, run: func(x *exchange) {
		f := x.echo()
		s := x.mustAnswer(f, "echo")
		require.Equal(x, map[bool]uint8{true: 0, false: 129}[x.v4], s.icmpType)
		require.Equal(x, []byte("are you there?"), s.payload)
	}},
	{name: "each fragment of an echo request is answered", only: udp, run: func(x *exchange) {
		first, later := x.echoPieces()
		s := dissect(x.mustAnswerPiece(first))
		require.Equal(x, map[bool]uint8{true: 0, false: 129}[x.v4], s.icmpType)
		require.Equal(x, first.bytes()[len(first.bytes())-len(first.raw)+8:], s.payload)
		s = dissect(x.mustAnswerPiece(later))
		require.Equal(x, later.raw, s.payload)
	}},
	{name: "a fragment of an echo request without the first one is dropped", only: udp, run: func(x *exchange) {
		_, later := x.echoPieces()
		x.mustDrop(later, "fragment-without-first")
	}},
	{name: "fragments of other ICMP messages are dropped", only: udp, run: func(x *exchange) {
		first, later := x.echoPieces()
		first.raw[0]++
		x.mustDrop(first, "no-flow")
		x.mustDrop(later, "fragment-without-first")
	}},
	{name: "an echo request with options is dropped", only: udp, run: func(x *exchange) {
		f := x.echo()
		f.options = []byte{1, 1, 1, 0}
		if !x.v4 {
			f.options, f.extension = []byte{icmp6, 0, 1, 4, 0, 0, 0, 0}, 60
		}
		x.mustDrop(f, "no-flow")
	}},
	{name: "echo requests are limited", only: udp, run: func(x *exchange) { x.mustBeLimited(x.echo) }},
	{name: "other ICMP for a VIP is dropped", only: udp, run: func(x *exchange) {
		f := x.echo()
		if x.v4 {
			f.raw = icmpMessage(0, 0, 0, nil, nil)
		} else {
			f.raw = icmpMessage(129, 0, 0, nil, &f)
		}
		x.mustDrop(f, "no-flow")
	}},
	{name: "neighbour discovery for a VIP is left to the host", only: udp, run: func(x *exchange) {
		if x.v4 {
			return
		}
		for kind := uint8(133); kind <= 137; kind++ {
			f := x.echo()
			f.raw = icmpMessage(kind, 0, 0, make([]byte, 16), &f)
			x.mustLeaveToHost(f)
		}
	}},
	{name: "an echo request to the gateway is left to the host", only: udp, run: func(x *exchange) {
		f := x.echo()
		f.to = netip.AddrPortFrom(theGateway[x.v4], 0)
		o := x.fromNode(f)
		require.Equal(x, left, o.verdict)
	}},
}

// answersPerSecond is ANSWERS_PER_SECOND of bpf/answers.h.
const answersPerSecond = 1000

// answerBurst is ANSWER_BURST of bpf/answers.h.
const answerBurst = 100
