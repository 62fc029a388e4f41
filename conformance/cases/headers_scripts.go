package cases

import (
	"fmt"

	"kubelb.k8c.io/conformance/headers"
)

// step is one packet of a crafted flow.
type step struct {
	what   string
	packet headers.Packet
	// reply means that the endpoint sends the packet.
	reply bool
	// back is by how much the sequence number is less than the next one, unacknowledged by how much the acknowledgement is less than all.
	back, unacknowledged uint32
	// blocks are the edges of selectively acknowledged blocks, as distances to the peer's next sequence number.
	blocks []uint32
	// summed gives a datagram a payload for which the checksum at the receiver is computed as zero.
	summed bool
}

// Options that no router changes: a router alert (RFC 2113), an experimental option (RFC 4727), a no-operation and the end.
var networkOptions = []byte{148, 4, 0, 0, 0x9e, 6, 1, 2, 3, 4, 1, 0}

// extensions are extension headers with an experimental option, which hosts ignore and no router changes (RFC 8200, RFC 4727).
func extensions() []headers.Extension {
	option := []byte{0x1e, 4, 1, 2, 3, 4}
	return []headers.Extension{headers.NewExtension(headers.HopByHop, option), headers.NewExtension(headers.Destination, append(option, option...))}
}

// withOptions returns the packet with options of its family between the headers.
func withOptions(v4 bool, p headers.Packet) headers.Packet {
	if v4 {
		p.Options = networkOptions
	} else {
		p.Extensions = extensions()
	}
	return p
}

// bothWays returns a request and a reply with the same fields.
func bothWays(what string, p headers.Packet) []step {
	return []step{{what: "the request, " + what, packet: p}, {what: "the reply, " + what, packet: p, reply: true}}
}

// datagramScript has datagrams with a value in each field of the headers.
func datagramScript(v4 bool) []step {
	text := []byte("datagram")
	script := bothWays("an ordinary datagram", headers.Packet{Payload: text, ID: 1, Fragment: headers.DontFragment})
	add := func(what string, p headers.Packet) { script = append(script, bothWays(what, p)...) }
	add("without a payload", headers.Packet{ID: 2, Fragment: headers.DontFragment})
	add("with one byte", headers.Packet{Payload: text[:1], ID: 3, Fragment: headers.DontFragment})
	add("that may be fragmented", headers.Packet{Payload: text, ID: 0xabcd})
	add("with TTL 2", headers.Packet{Payload: text, TTL: 2, ID: 4})
	add("with TTL 255", headers.Packet{Payload: text, TTL: 255, ID: 5})
	add("with IPv4 options or extension headers", withOptions(v4, headers.Packet{Payload: text, ID: 6}))
	add("as large as the link's MTU", headers.Packet{Payload: make([]byte, mtuPayload(v4)), ID: 7, Fragment: headers.DontFragment})
	add("expedited, with congestion experienced", headers.Packet{Payload: text, ID: 8, TrafficClass: 46<<2 | headers.CongestionExperienced})
	if v4 {
		add("without a checksum", headers.Packet{Payload: text, ID: 9, Unsummed: true})
	} else {
		add("with a flow label", headers.Packet{Payload: text, FlowLabel: 0xfedcb})
	}
	for i, s := range bothWays("with a checksum of ones", headers.Packet{ID: 10}) {
		s.summed, s.reply = true, i == 1
		script = append(script, s)
	}
	return script
}

// mtuPayload is the largest payload of a datagram in one frame.
func mtuPayload(v4 bool) int {
	if v4 {
		return 1500 - 20 - 8
	}
	return 1500 - 40 - 8
}

// trafficClasses has datagrams with each DSCP, and each of them with another ECN codepoint, in both directions.
func trafficClasses() (script []step) {
	for dscp := range 64 {
		p := headers.Packet{TrafficClass: uint8(dscp<<2 | dscp&3), ID: uint16(1000 + dscp), Payload: []byte{byte(dscp)}}
		script = append(script, bothWays(fmt.Sprintf("DSCP %d with ECN %02b", dscp, dscp&3), p)...)
	}
	return script
}

// connectionScript has the segments of a connection that uses all that TCP has.
func connectionScript(v4 bool) []step {
	const ack = headers.ACK
	now := uint32(1000)
	times := func() headers.Option { now++; return headers.Timestamps(now, now-1) }
	data := []byte("a segment with some data in it")
	cookie := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	ecn := uint8(headers.ECT0)
	return []step{
		{what: "a SYN with all options, ECN, and data (Fast Open)", packet: headers.Packet{Flags: headers.SYN | headers.ECE | headers.CWR | headers.AE, Window: 65535, ID: 1, Fragment: headers.DontFragment,
			TCPOptions: headers.Options(headers.MSS(1337), headers.SACKPermitted(), times(), headers.WindowScale(7), headers.FastOpen(cookie...)), Payload: data}},
		{what: "its answer", reply: true, packet: headers.Packet{Flags: headers.SYN | ack | headers.ECE, Window: 64000, ID: 2, Fragment: headers.DontFragment,
			TCPOptions: headers.Options(headers.MSS(1221), headers.SACKPermitted(), times(), headers.WindowScale(9), headers.FastOpen(cookie[:4]...))}},
		{what: "the end of the handshake", packet: headers.Packet{Flags: ack, Window: 501, ID: 3, TrafficClass: 10<<2 | ecn, TCPOptions: headers.Options(times())}},
		{what: "an expedited segment", packet: headers.Packet{Flags: ack | headers.PSH, Window: 502, ID: 4, TrafficClass: 46<<2 | ecn, FlowLabel: 0x12345, Payload: data,
			TCPOptions: headers.Options(times())}},
		{what: "a segment with congestion experienced", reply: true, packet: headers.Packet{Flags: ack | headers.ECE, Window: 503, ID: 5, TrafficClass: 10<<2 | headers.CongestionExperienced, FlowLabel: 0x54321,
			Payload: data, TCPOptions: headers.Options(times())}},
		{what: "a reduced congestion window", packet: headers.Packet{Flags: ack | headers.CWR, Window: 504, ID: 6, TrafficClass: headers.ECT1, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "urgent data", packet: headers.Packet{Flags: ack | headers.URG | headers.PSH, Urgent: 7, Window: 505, ID: 7, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "urgent data of the endpoint", reply: true, packet: headers.Packet{Flags: ack | headers.URG, Urgent: 1, Window: 506, ID: 8, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "a selective acknowledgement", packet: headers.Packet{Flags: ack, Window: 507, ID: 9, TCPOptions: headers.Options(times())},
			unacknowledged: uint32(len(data)), blocks: []uint32{20, 15, 10, 0}},
		{what: "a selective acknowledgement of a duplicate", reply: true, packet: headers.Packet{Flags: ack, Window: 508, ID: 10, TCPOptions: headers.Options(times())}, blocks: []uint32{30, 20}},
		{what: "a retransmission", packet: headers.Packet{Flags: ack, Window: 509, ID: 11, Payload: data, TCPOptions: headers.Options(times())}, back: uint32(len(data))},
		{what: "a window of zero", packet: headers.Packet{Flags: ack, ID: 12, TCPOptions: headers.Options(times())}},
		{what: "a keepalive", reply: true, packet: headers.Packet{Flags: ack, Window: 510, ID: 13, TCPOptions: headers.Options(times())}, back: 1},
		{what: "TTL 2, and it may be fragmented", packet: headers.Packet{Flags: ack, Window: 511, ID: 0xdead, TTL: 2, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "TTL 2 of the endpoint", reply: true, packet: headers.Packet{Flags: ack, Window: 512, ID: 0xbeef, TTL: 2, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "IPv4 options or extension headers", packet: withOptions(v4, headers.Packet{Flags: ack, Window: 513, ID: 14, Payload: data, TCPOptions: headers.Options(times())})},
		{what: "IPv4 options or extension headers of the endpoint", reply: true, packet: withOptions(v4, headers.Packet{Flags: ack, Window: 514, ID: 15, Payload: data, TCPOptions: headers.Options(times())})},
		{what: "options that few know", packet: headers.Packet{Flags: ack, Window: 515, ID: 16, Payload: data, TCPOptions: headers.Options(times(),
			headers.Option{Kind: headers.KindUserTimeout, Data: []byte{0x80, 9}}, headers.Option{Kind: headers.KindExperiment, Data: []byte{0xf9, 0x89, 1, 2}})}},
		{what: "options that few know, of the endpoint", reply: true, packet: headers.Packet{Flags: ack, Window: 516, ID: 17, Payload: data, TCPOptions: headers.Options(
			headers.Option{Kind: headers.KindExperiment, Data: []byte{0xf9, 0x89, 3, 4}}, times())}},
		{what: "reserved flags", packet: headers.Packet{Flags: ack | headers.AE | headers.Reserved, Window: 517, ID: 18, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "reserved flags of the endpoint", reply: true, packet: headers.Packet{Flags: ack | headers.AE | headers.Reserved, Window: 518, ID: 19, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "the client's end", packet: headers.Packet{Flags: ack | headers.FIN | headers.PSH, Window: 519, ID: 20, Payload: data, TCPOptions: headers.Options(times())}},
		{what: "the endpoint's end", reply: true, packet: headers.Packet{Flags: ack | headers.FIN, Window: 520, ID: 21, TCPOptions: headers.Options(times())}},
		{what: "the last acknowledgement", packet: headers.Packet{Flags: ack, Window: 521, ID: 22, TrafficClass: 46 << 2, TCPOptions: headers.Options(times())}},
	}
}

// plainScript has the segments of a connection without options, which ends with a reset.
func plainScript() []step {
	return []step{
		{what: "a SYN without options, with reserved flags", packet: headers.Packet{Flags: headers.SYN | headers.Reserved, Window: 1000, ID: 1}},
		{what: "its answer", reply: true, packet: headers.Packet{Flags: headers.SYN | headers.ACK, Window: 2000, ID: 2, Fragment: headers.DontFragment}},
		{what: "the end of the handshake", packet: headers.Packet{Flags: headers.ACK, Window: 1001, ID: 3}},
		{what: "a segment of the endpoint", reply: true, packet: headers.Packet{Flags: headers.ACK | headers.PSH, Window: 2001, ID: 4, Payload: []byte("x")}},
		{what: "a reset", packet: headers.Packet{Flags: headers.RST | headers.ACK, Window: 0, ID: 5, TrafficClass: 8 << 2}},
	}
}
