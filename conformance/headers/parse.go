package headers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

var errShort = errors.New("the packet is too short for its headers")

// Parse reads a packet. The packet's Faults say which checksums and lengths are wrong. Bytes behind the packet's end are ignored, because
// short Ethernet frames have some.
func Parse(b []byte) (Packet, error) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return parse4(b)
	case len(b) >= 40 && b[0]>>4 == 6:
		return parse6(b)
	}
	return Packet{}, errors.New("neither IPv4 nor IPv6")
}

func parse4(b []byte) (Packet, error) {
	p := Packet{TrafficClass: b[1], ID: binary.BigEndian.Uint16(b[4:]), Fragment: binary.BigEndian.Uint16(b[6:]), TTL: b[8], Protocol: b[9],
		Source: netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0), Target: netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || header > len(b) || total < header {
		return p, errShort
	}
	if header > 20 {
		p.Options = clone(b[20:header])
	}
	if sum(b[:header]) != 0xffff {
		p.fault("the checksum of the IPv4 header is wrong")
	}
	return p, p.parseTransport(p.cut(b, total)[header:])
}

func parse6(b []byte) (Packet, error) {
	first := binary.BigEndian.Uint32(b)
	p := Packet{TrafficClass: uint8(first >> 20), FlowLabel: first & 0xfffff, Protocol: b[6], TTL: b[7],
		Source: netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0), Target: netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)}
	rest := p.cut(b, 40+int(binary.BigEndian.Uint16(b[4:])))[40:]
	for p.Protocol == HopByHop || p.Protocol == Routing || p.Protocol == Destination || p.Protocol == Fragment {
		if len(rest) < 8 {
			return p, errShort
		}
		length := 8
		if p.Protocol != Fragment {
			length += int(rest[1]) * 8
		}
		if len(rest) < length {
			return p, errShort
		}
		p.Extensions = append(p.Extensions, Extension{p.Protocol, clone(rest[1:length])})
		p.Protocol, rest = rest[0], rest[length:]
		if p.IsLaterFragment() {
			break
		}
	}
	return p, p.parseTransport(rest)
}

// cut returns the packet without what follows its end.
func (p *Packet) cut(b []byte, length int) []byte {
	if length > len(b) {
		p.fault("the packet has %d bytes, and its header says %d", len(b), length)
		return b
	}
	return b[:length]
}

func (p *Packet) parseTransport(b []byte) error {
	p.Payload = clone(b)
	if p.IsLaterFragment() {
		return nil
	}
	header := 8
	switch p.Protocol {
	case ICMP, ICMPv6:
		p.checkICMP(b)
		return nil
	case TCP:
		header = 20
	case UDP:
	default:
		return nil
	}
	if len(b) < header {
		return errShort
	}
	p.Source = netip.AddrPortFrom(p.Source.Addr(), binary.BigEndian.Uint16(b))
	p.Target = netip.AddrPortFrom(p.Target.Addr(), binary.BigEndian.Uint16(b[2:]))
	if p.Protocol == TCP {
		length := int(b[12]>>4) * 4
		if length < header || length > len(b) {
			return errShort
		}
		header = length
		p.parseTCP(b[:header])
	} else {
		p.parseUDP(b)
	}
	p.Payload = p.Payload[header:]
	return nil
}

func (p *Packet) parseTCP(header []byte) {
	p.Sequence, p.Acknowledged = binary.BigEndian.Uint32(header[4:]), binary.BigEndian.Uint32(header[8:])
	p.Flags = binary.BigEndian.Uint16(header[12:]) & 0xfff
	p.Window, p.Urgent = binary.BigEndian.Uint16(header[14:]), binary.BigEndian.Uint16(header[18:])
	if len(header) > 20 {
		p.TCPOptions = clone(header[20:])
	}
	if !p.isFragment() && p.transportSum(p.Payload) != 0xffff {
		p.fault("the checksum of the TCP segment is wrong")
	}
}

func (p *Packet) parseUDP(b []byte) {
	if length := int(binary.BigEndian.Uint16(b[4:])); !p.isFragment() && length != len(b) {
		p.fault("the datagram has %d bytes, and its header says %d", len(b), length)
	}
	if p.Unsummed = binary.BigEndian.Uint16(b[6:]) == 0; p.Unsummed {
		return
	}
	if !p.isFragment() && p.transportSum(b) != 0xffff {
		p.fault("the checksum of the datagram is wrong")
	}
}

func (p *Packet) checkICMP(b []byte) {
	of := sum(b)
	if p.Protocol == ICMPv6 {
		of = p.transportSum(b)
	}
	if !p.isFragment() && of != 0xffff {
		p.fault("the checksum of the ICMP message is wrong")
	}
}

func (p *Packet) fault(format string, args ...any) {
	p.Faults = append(p.Faults, fmt.Sprintf(format, args...))
}

func clone(b []byte) []byte { return append([]byte{}, b...) }
