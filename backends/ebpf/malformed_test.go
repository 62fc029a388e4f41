package ebpf

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/stretchr/testify/require"
)

// spoiled is a client's first packet with other bytes at an offset in its IP packet.
func (x *exchange) spoiled(at int, bytes ...byte) frame {
	f := x.ask(portPlain)
	f.spoil = func(frame []byte) { copy(frame[14+at:], bytes) }
	return f
}

// header is the length of an IP header without options.
func (x *exchange) header() int {
	if x.v4 {
		return 20
	}
	return 40
}

// malformedFixtures are about what is no packet for a VIP, or none that holds what it says.
var malformedFixtures = []fixture{
	{name: "what is for no VIP is left", run: func(x *exchange) {
		f := x.ask(portPlain)
		f.to = netip.AddrPortFrom(noVIP[x.v4], portPlain)
		x.mustLeave(f)
	}},
	{name: "a frame for another host is left", run: func(x *exchange) {
		for _, mac := range []net.HardwareAddr{{2, 0, 0, 0, 0, 9}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, x.back.HardwareAddr} {
			f := x.ask(portPlain)
			f.toMAC = mac
			x.mustLeave(f)
		}
	}},
	{name: "a frame with a VLAN tag is left to the interface of its VLAN", run: func(x *exchange) {
		f := x.ask(portPlain)
		f.tag = 7
		require.Equal(x, left, x.fromClient(f).verdict)
	}},
	{name: "what is not IP is left", run: func(x *exchange) {
		f := x.ask(portPlain)
		f.etherType = 0x0806
		x.mustLeave(f)
		f.etherType = 0x88cc
		x.mustLeave(f)
	}},
	{name: "a packet of the other version than its frame says is left", run: func(x *exchange) {
		f := x.ask(portPlain)
		f.etherType, f.payload = map[bool]uint16{true: 0x86dd, false: 0x0800}[x.v4], make([]byte, 40)
		require.Equal(x, left, x.fromClient(f).verdict)
	}},
	{name: "another transport protocol is dropped", run: func(x *exchange) {
		for _, protocol := range []uint8{2, 47, 50, 132, 255} {
			f := x.ask(portPlain)
			f.protocol, f.raw = protocol, make([]byte, 32)
			x.mustDrop(f, "refused")
		}
	}},
	{name: "a packet longer than its frame is dropped", run: func(x *exchange) {
		if x.v4 {
			x.mustDrop(x.longer(2), "malformed")
		} else {
			x.mustDrop(x.longer(4), "malformed")
		}
	}},
	{name: "a first fragment that says that it ends before its ports do is dropped", run: func(x *exchange) {
		f := x.ask(portPlain)
		f.payload, f.more = make([]byte, 32), true
		bytes := f.bytes()
		short := map[bool][2]byte{true: {0, 24}, false: {0, 12}}[x.v4] // of the header before the ports, with 4 bytes of them
		copy(bytes[map[bool]int{true: 14 + 2, false: 14 + 4}[x.v4]:], short[:])
		before := x.drops()["malformed"]
		require.Equal(x, dropping, x.receive(x.front, bytes).verdict)
		require.Equal(x, before+1, x.drops()["malformed"])
	}},
	{name: "a packet shorter than its header is dropped", run: func(x *exchange) {
		if x.v4 {
			x.mustDrop(x.spoiled(2, 0, 10), "malformed")
			return
		}
		x.mustDrop(x.spoiled(4, 0, 3), "malformed")
	}},
	{name: "a header that says to be too short is left", run: func(x *exchange) {
		if x.v4 {
			x.mustLeave(x.spoiled(0, 0x44))
		}
	}},
	{name: "a segment that is cut is dropped", run: func(x *exchange) {
		for n := range 8 {
			f := x.ask(portPlain)
			f.raw = f.segment()[:n]
			x.mustDrop(f, "malformed")
		}
	}},
	{name: "a TCP header that says to be too short, or longer than the packet, is dropped", only: tcp, run: func(x *exchange) {
		for _, words := range []byte{0, 4, 15} {
			x.mustDrop(x.spoiled(x.header()+12, words<<4), "malformed")
		}
	}},
	{name: "a datagram that says to be too short, or longer than the packet, is dropped", only: udp, run: func(x *exchange) {
		for _, length := range []uint16{0, 7, 500} {
			x.mustDrop(x.spoiled(x.header()+4, byte(length>>8), byte(length)), "malformed")
		}
	}},
	{name: "an ICMP message that is cut is dropped", only: udp, run: func(x *exchange) {
		f := x.echo()
		f.raw = f.raw[:6]
		x.mustDrop(f, "malformed")
	}},
	{name: "extension headers that lead nowhere are dropped", run: func(x *exchange) {
		if x.v4 {
			return
		}
		f := x.ask(portPlain)
		f.options, f.extension = []byte{x.protocol, 200, 0, 0, 0, 0, 0, 0}, 60
		x.mustDrop(f, "malformed")
		f.raw, f.options = []byte{}, []byte{60, 0, 0}
		x.mustDrop(f, "malformed")
		f = x.ask(portPlain)
		for range 7 {
			f.options = append(f.options, 60, 0, 1, 4, 0, 0, 0, 0)
		}
		x.mustDrop(f, "refused")
	}},
	{name: "many extension headers are passed over", run: func(x *exchange) {
		if x.v4 {
			return
		}
		f := x.ask(portPlain)
		f.extension = 0
		for _, next := range []uint8{60, 43, 60, x.protocol} {
			f.options = append(f.options, next, 0, 1, 4, 0, 0, 0, 0)
		}
		x.mustReachNode(f)
	}},
	{name: "who claims to be this gateway is dropped", run: func(x *exchange) {
		for _, from := range []netip.Addr{theVIP[x.v4], theGateway[x.v4]} {
			f := x.ask(portPlain)
			f.from = netip.AddrPortFrom(from, 40000)
			x.mustDrop(f, "own-source")
		}
	}},
	{name: "frames of a few bytes are left", run: func(x *exchange) {
		whole := x.ask(portPlain).bytes()
		for n := 14; n < 14+x.header(); n += 3 {
			// The kernel runs no tc program on so few.
			require.Equal(x, left, x.receiveByXDP(x.front, whole[:n]).verdict, "%d bytes", n)
		}
	}},
}

// longer is a packet whose length, at an offset in its header, is more than there is.
func (x *exchange) longer(at int) frame {
	f := x.ask(portPlain)
	f.spoil = func(frame []byte) {
		length := frame[14+at:]
		binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)+40)
	}
	return f
}
