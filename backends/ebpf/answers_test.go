package ebpf

import (
	"net/netip"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// age has all flows be quiet for longer.
func (b *bench) age(by time.Duration) {
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

func (b *bench) sweep() {
	require.NoError(b, b.backend.sweep())
}

func (b *bench) slice(ports uint16) {
	b.backend.kernel.settings.Ports = ports
	require.NoError(b, b.backend.kernel.writeSettings())
}

func (b *bench) closing(is uint8) {
	b.backend.kernel.settings.Closing = is
	require.NoError(b, b.backend.kernel.writeSettings())
}

// neighbours sets, or forgets, the nodes' MACs.
func (x *exchange) neighbours(change func(*netlink.Neigh) error) {
	for _, node := range []netip.Addr{theNode[x.v4], otherNode[x.v4]} {
		require.NoError(x, change(&netlink.Neigh{LinkIndex: x.back.Index, IP: node.AsSlice(), HardwareAddr: nodeMAC, State: netlink.NUD_PERMANENT}))
	}
}

// outlastWays waits until the XDP program has forgotten the ways that it has been told (moment in bpf/easy.h).
func (x *exchange) outlastWays() { time.Sleep(2 << 26) }

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

// icmpMessage has a pseudo-header in its checksum if it is of IPv6.
func icmpMessage(kind, code uint8, second uint32, body []byte, v6 *frame) []byte {
	out := append([]byte{kind, code, 0, 0, byte(second >> 24), byte(second >> 16), byte(second >> 8), byte(second)}, body...)
	sum := folded(sumOf(0, append(append([]byte{}, out...), make([]byte, len(out)%2)...)))
	if v6 != nil {
		sum = checksum(v6.from.Addr(), v6.to.Addr(), icmp6, out)
	}
	out[2], out[3] = byte(sum>>8), byte(sum)
	return out
}

// mustBeLimited tells whether a client that asks all the time was dropped. A machine that is slow enough asks no more often than it may.
func (x *exchange) mustBeLimited(ask func() frame) bool {
	begin := time.Now()
	for range 4 * answersAtOnce {
		if x.fromClient(ask()).verdict == dropping {
			return true
		}
	}
	require.Greater(x, answersAtOnce+time.Since(begin).Seconds()*answersASecond, 4.0*answersAtOnce, "nothing was dropped")
	return false
}

// answerFixtures are about what the gateway says itself.
var answerFixtures = []fixture{
	{name: "a port that nobody serves is refused", run: func(x *exchange) { x.mustRefuse(x.ask(portOther)) }},
	{name: "a pool without endpoints refuses", run: func(x *exchange) { x.mustRefuse(x.ask(portEmpty)) }},
	{name: "a reset for nobody is dropped", only: tcp, run: func(x *exchange) { x.mustDrop(x.goOn(portOther, rst), "no-flow") }},
	{name: "a packet with options is refused as others are", run: func(x *exchange) {
		f := x.ask(portOther)
		f.options = []byte{1, 1, 1, 0}
		if !x.v4 {
			f.options, f.extension = []byte{x.protocol, 0, 1, 4, 0, 0, 0, 0}, 0
		}
		x.mustRefuse(f)
	}},
	{name: "who asks too often for what nobody serves is dropped", run: func(x *exchange) {
		if x.mustBeLimited(func() frame { return x.ask(portOther) }) {
			require.NotZero(x, x.drops()["rate"])
		}
	}},
	{name: "a packet at its last hop is reported to the client", run: func(x *exchange) {
		f := x.ask(portPlain)
		f.ttl = 1
		kind := [2]uint8{11, 0}
		if !x.v4 {
			kind = [2]uint8{3, 0}
		}
		x.mustReport(x.mustAnswer(f, "ttl"), kind, f)
	}},
	{name: "a packet that is too big for the way is reported to the client", run: func(x *exchange) {
		f := x.ask(portPlain)
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
	{name: "an echo request with options is not", only: udp, run: func(x *exchange) {
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
	{name: "neighbour discovery is left to who announces the VIP", only: udp, run: func(x *exchange) {
		if x.v4 {
			return
		}
		for kind := uint8(133); kind <= 137; kind++ {
			f := x.echo()
			f.raw = icmpMessage(kind, 0, 0, make([]byte, 16), &f)
			x.mustLeave(f)
		}
	}},
	{name: "an echo request to the gateway is left to the host", only: udp, run: func(x *exchange) {
		f := x.echo()
		f.to = netip.AddrPortFrom(theGateway[x.v4], 0)
		o := x.fromNode(f)
		require.Equal(x, left, o.verdict)
	}},
}

// answersASecond is ANSWERS_A_SECOND of bpf/answers.h.
const answersASecond = 1000

// answersAtOnce is ANSWERS_AT_ONCE of bpf/answers.h.
const answersAtOnce = 100
