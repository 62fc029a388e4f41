package watchdog

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/uplink"
)

// Flags of a TCP header (RFC 9293 section 3.1).
const (
	flagFIN byte = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
	tcpHeader      = 20
	etherTypeIPv4  = 0x0800
	etherTypeIPv6  = 0x86dd
	hopLimit       = 64
	window         = 64240
)

// flow has the addresses and ports of a try.
type flow struct {
	client, frontend netip.AddrPort
}

// tcpSegment is a TCP segment without data.
type tcpSegment struct {
	flow
	seq, ack uint32
	flags    byte
}

// frame returns the segment in an Ethernet frame from the client.
func (s tcpSegment) frame(from, to net.HardwareAddr) []byte {
	b := append(append([]byte{}, to...), from...)
	source, target := s.client.Addr().AsSlice(), s.frontend.Addr().AsSlice()
	if s.client.Addr().Is4() {
		b = binary.BigEndian.AppendUint16(b, etherTypeIPv4)
		ip := []byte{0x45, 0, 0, ipv4Header + tcpHeader, 0, 0, 0x40, 0, hopLimit, unix.IPPROTO_TCP, 0, 0}
		ip = append(append(ip, source...), target...)
		binary.BigEndian.PutUint16(ip[10:], uplink.Checksum(ip))
		b = append(b, ip...)
	} else {
		b = binary.BigEndian.AppendUint16(b, etherTypeIPv6)
		b = append(b, 0x60, 0, 0, 0, 0, tcpHeader, unix.IPPROTO_TCP, hopLimit)
		b = append(append(b, source...), target...)
	}
	tcp := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(tcp, s.client.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.frontend.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[12], tcp[13] = tcpHeader/4<<4, s.flags
	binary.BigEndian.PutUint16(tcp[14:], window)
	pseudo := append(append([]byte{}, source...), target...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, tcpHeader)
	binary.BigEndian.PutUint16(tcp[16:], uplink.Checksum(append(pseudo, tcp...)))
	return append(b, tcp...)
}

// answer is a TCP segment of a flow, or an ICMP error about one.
type answer struct {
	flow
	// seq, ack and flags are those of a TCP segment; of an ICMP error seq is that of the segment that it is about.
	seq, ack uint32
	flags    byte
	// data: the segment has data.
	data bool
	// unreachable: it is an ICMP error. noPort: it says that nobody listens at the port, as nodes do for a Service without a ready pod.
	unreachable, noPort bool
}

// parseAnswer parses a frame to the client. It returns false if the frame cannot be an answer to a try.
func parseAnswer(frame []byte) (answer, bool) {
	if len(frame) < ethernetHeader {
		return answer{}, false
	}
	p, ok := parsePacket(frame[ethernetHeader:])
	if !ok {
		return answer{}, false
	}
	if p.protocol == unix.IPPROTO_TCP {
		if len(p.payload) < tcpHeader {
			return answer{}, false
		}
		return answer{flow: flow{client: netip.AddrPortFrom(p.target, binary.BigEndian.Uint16(p.payload[2:])), frontend: netip.AddrPortFrom(p.source, binary.BigEndian.Uint16(p.payload))},
			seq: binary.BigEndian.Uint32(p.payload[4:]), ack: binary.BigEndian.Uint32(p.payload[8:]), flags: p.payload[13], data: len(p.payload) > int(p.payload[12]>>4)*4}, true
	}
	return parseICMPError(p)
}

// datagram is an IP packet.
type datagram struct {
	source, target netip.Addr
	protocol       byte
	payload        []byte
}

// parsePacket parses an IP packet, which may be truncated. It does not follow IPv6 extension headers, since no answer has any.
func parsePacket(b []byte) (datagram, bool) {
	if len(b) < 1 {
		return datagram{}, false
	}
	switch b[0] >> 4 {
	case 4:
		length := int(b[0]&0xf) * 4
		if length < ipv4Header || len(b) < length {
			return datagram{}, false
		}
		// A short packet has padding behind it (IEEE 802.3).
		if whole := int(binary.BigEndian.Uint16(b[2:])); whole >= length && whole < len(b) {
			b = b[:whole]
		}
		return datagram{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9], b[length:]}, true
	case 6:
		if len(b) < ipv6Header {
			return datagram{}, false
		}
		return datagram{netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6], b[ipv6Header:]}, true
	}
	return datagram{}, false
}

const (
	icmpHeader              = 8
	icmpUnreachable         = 3 // RFC 792
	icmpTimeExceeded        = 11
	icmpv6Unreachable       = 1 // RFC 4443
	icmpv6TimeExceeded      = 3
	icmpFragmentation       = 4 // a code, of packets that are too big
	icmpNoPort              = 3 // codes of a port at which nobody listens
	icmpv6NoPort            = 4
	tcpBeginning            = 8 // of a TCP header: the ports and the sequence number, which are in each error
	protocolICMP            = unix.IPPROTO_ICMP
	protocolICMPv6     byte = unix.IPPROTO_ICMPV6
)

// parseICMPError parses an ICMP error. Its payload is the beginning of the packet that caused it.
func parseICMPError(p datagram) (answer, bool) {
	if len(p.payload) < icmpHeader {
		return answer{}, false
	}
	kind, code := p.payload[0], p.payload[1]
	noPort := false
	switch {
	case p.protocol == protocolICMP && (kind == icmpUnreachable && code != icmpFragmentation || kind == icmpTimeExceeded):
		noPort = kind == icmpUnreachable && code == icmpNoPort
	case p.protocol == protocolICMPv6 && (kind == icmpv6Unreachable || kind == icmpv6TimeExceeded):
		noPort = kind == icmpv6Unreachable && code == icmpv6NoPort
	default:
		return answer{}, false
	}
	about, ok := parsePacket(p.payload[icmpHeader:])
	if !ok || about.protocol != unix.IPPROTO_TCP || len(about.payload) < tcpBeginning {
		return answer{}, false
	}
	client := netip.AddrPortFrom(about.source, binary.BigEndian.Uint16(about.payload))
	frontend := netip.AddrPortFrom(about.target, binary.BigEndian.Uint16(about.payload[2:]))
	return answer{flow: flow{client, frontend}, seq: binary.BigEndian.Uint32(about.payload[4:]), unreachable: true, noPort: noPort}, true
}
