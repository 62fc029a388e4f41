package ebpf

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// corrupted is a client's first packet with changed bytes at an offset of the IP packet.
func (x *exchange) corrupted(at int, bytes ...byte) frame {
	f := x.firstFrame(portPlain)
	f.corrupt = func(frame []byte) { copy(frame[14+at:], bytes) }
	return f
}

// header is the length of an IP header without options.
func (x *exchange) header() int {
	if x.v4 {
		return 20
	}
	return 40
}

// malformedFixtures test malformed packets, and packets for other addresses.
var malformedFixtures = []fixture{
	{name: "a packet for another address is left to the host", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.to = netip.AddrPortFrom(notVIP[x.v4], portPlain)
		x.mustLeaveToHost(f)
	}},
	{name: "a frame for another host is left alone", run: func(x *exchange) {
		for _, mac := range []net.HardwareAddr{{2, 0, 0, 0, 0, 9}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, x.back.HardwareAddr} {
			f := x.firstFrame(portPlain)
			f.toMAC = mac
			x.mustLeaveToHost(f)
		}
	}},
	{name: "a frame with a VLAN tag is left to the interface of its VLAN", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.tag = 7
		require.Equal(x, left, x.fromClient(f).verdict)
	}},
	{name: "a frame without an IP packet is left to the host", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.etherType = 0x0806
		x.mustLeaveToHost(f)
		f.etherType = 0x88cc
		x.mustLeaveToHost(f)
	}},
	{name: "a packet whose version does not match the frame is left to the host", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
		f.etherType, f.payload = map[bool]uint16{true: 0x86dd, false: 0x0800}[x.v4], make([]byte, 40)
		require.Equal(x, left, x.fromClient(f).verdict)
	}},
	{name: "another transport protocol is dropped", run: func(x *exchange) {
		for _, protocol := range []uint8{2, 47, 50, 132, 255} {
			f := x.firstFrame(portPlain)
			f.protocol, f.raw = protocol, make([]byte, 32)
			x.mustDrop(f, "refused")
		}
	}},
	{name: "the padding of a frame is not counted", run: func(x *exchange) {
		bytes := func() uint64 {
			stats, err := x.backend.Stats(x.Context())
			require.NoError(x, err)
			return stats.Frontends[model.FrontendKey{VIP: x.vip(portPlain).Addr(), Protocol: model.Protocol(x.protocol), Port: portPlain}].Bytes
		}
		f := x.firstFrame(portPlain)
		before := bytes()
		require.Equal(x, sent, x.receive(x.front, append(f.bytes(), make([]byte, 20)...)).verdict)
		const ethernetHeader = 14
		require.Equal(x, uint64(len(f.bytes())-ethernetHeader), bytes()-before)
	}},
	{name: "a packet longer than its frame is dropped", run: func(x *exchange) {
		if x.v4 {
			x.mustDrop(x.longer(2), "malformed")
		} else {
			x.mustDrop(x.longer(4), "malformed")
		}
	}},
	{name: "a first fragment whose length ends before its ports is dropped", run: func(x *exchange) {
		f := x.firstFrame(portPlain)
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
			x.mustDrop(x.corrupted(2, 0, 10), "malformed")
			return
		}
		x.mustDrop(x.corrupted(4, 0, 3), "malformed")
	}},
	{name: "a packet whose header length is too short is left to the host", run: func(x *exchange) {
		if x.v4 {
			x.mustLeaveToHost(x.corrupted(0, 0x44))
		}
	}},
	{name: "a truncated segment is dropped", run: func(x *exchange) {
		for n := range 8 {
			f := x.firstFrame(portPlain)
			f.raw = f.segment()[:n]
			x.mustDrop(f, "malformed")
		}
	}},
	{name: "a TCP header whose length is too short, or longer than the packet, is dropped", only: tcp, run: func(x *exchange) {
		for _, words := range []byte{0, 4, 15} {
			x.mustDrop(x.corrupted(x.header()+12, words<<4), "malformed")
		}
	}},
	{name: "a datagram whose length is too short, or longer than the packet, is dropped", only: udp, run: func(x *exchange) {
		for _, length := range []uint16{0, 7, 500} {
			x.mustDrop(x.corrupted(x.header()+4, byte(length>>8), byte(length)), "malformed")
		}
	}},
	{name: "a truncated ICMP message is dropped", only: udp, run: func(x *exchange) {
		f := x.echo()
		f.raw = f.raw[:6]
		x.mustDrop(f, "malformed")
	}},
	{name: "a packet with invalid extension headers is dropped", run: func(x *exchange) {
		if x.v4 {
			return
		}
		f := x.firstFrame(portPlain)
		f.options, f.extension = []byte{x.protocol, 200, 0, 0, 0, 0, 0, 0}, 60
		x.mustDrop(f, "malformed")
		f.raw, f.options = []byte{}, []byte{60, 0, 0}
		x.mustDrop(f, "malformed")
		f = x.firstFrame(portPlain)
		for range 7 {
			f.options = append(f.options, 60, 0, 1, 4, 0, 0, 0, 0)
		}
		x.mustDrop(f, "refused")
	}},
	{name: "many extension headers are skipped", run: func(x *exchange) {
		if x.v4 {
			return
		}
		f := x.firstFrame(portPlain)
		f.extension = 0
		for _, next := range []uint8{60, 43, 60, x.protocol} {
			f.options = append(f.options, next, 0, 1, 4, 0, 0, 0, 0)
		}
		x.mustReachNode(f)
	}},
	{name: "a packet whose source is an address of this gateway is dropped", run: func(x *exchange) {
		for _, from := range []netip.Addr{theVIP[x.v4], theGateway[x.v4]} {
			f := x.firstFrame(portPlain)
			f.from = netip.AddrPortFrom(from, 40000)
			x.mustDrop(f, "own-source")
		}
	}},
	{name: "short frames are left to the host", run: func(x *exchange) {
		whole := x.firstFrame(portPlain).bytes()
		for n := 14; n < 14+x.header(); n += 3 {
			// The kernel runs no tc program on a frame this short.
			require.Equal(x, left, x.receiveByXDP(x.front, whole[:n]).verdict, "%d bytes", n)
		}
	}},
}

// longer is a packet whose length field, at an offset in its header, is larger than the packet.
func (x *exchange) longer(at int) frame {
	f := x.firstFrame(portPlain)
	f.corrupt = func(frame []byte) {
		length := frame[14+at:]
		binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)+40)
	}
	return f
}
