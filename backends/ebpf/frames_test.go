package ebpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// Protocols and TCP flags of frames.
const (
	tcp, udp, icmp4, icmp6 = 6, 17, 1, 58

	fin, syn, rst, ack = 1, 2, 4, 16
)

// frame is a frame that a test sends. Zero values are the defaults.
type frame struct {
	from, to   netip.AddrPort
	toMAC      net.HardwareAddr
	protocol   uint8
	flags      uint8
	seq, acked uint32
	payload    []byte
	ttl        uint8
	// raw replaces header and payload of TCP or UDP.
	raw []byte
	// options follow the IPv4 header. They are extension headers after the IPv6 header, and the first one has the type extension.
	options   []byte
	extension uint8
	// Fields of a fragment: offset in bytes, whether more fragments follow, and the id of the packet.
	offset      uint16
	more        bool
	id          uint32
	mayFragment bool // IPv4: DF is not set
	noChecksum  bool // UDP without a checksum
	tag         uint16
	etherType   uint16
	// corrupt changes the finished bytes.
	corrupt func([]byte)
}

func (f frame) v4() bool { return f.to.Addr().Is4() }

// end is the sequence number after the segment.
func (f frame) end() uint32 {
	return f.seq + uint32(len(f.payload)) + uint32(f.flags&syn>>1) + uint32(f.flags&fin)
}

func (f frame) bytes() []byte {
	segment := f.raw
	if segment == nil {
		segment = f.segment()
	}
	packet := f.ip(segment)
	out := append([]byte{}, f.toMAC...)
	out = append(out, clientMAC...)
	if f.tag != 0 {
		out = binary.BigEndian.AppendUint16(out, 0x8100)
		out = binary.BigEndian.AppendUint16(out, f.tag)
	}
	kind := uint16(0x86dd)
	if f.v4() {
		kind = 0x0800
	}
	if f.etherType != 0 {
		kind = f.etherType
	}
	out = append(binary.BigEndian.AppendUint16(out, kind), packet...)
	if f.corrupt != nil {
		f.corrupt(out)
	}
	return out
}

func (f frame) segment() []byte {
	if f.protocol == udp {
		out := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, f.from.Port()), f.to.Port())
		out = binary.BigEndian.AppendUint16(out, uint16(8+len(f.payload)))
		out = append(append(out, 0, 0), f.payload...)
		if f.noChecksum {
			return out
		}
		sum := f.sum(out)
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(out[6:], sum)
		return out
	}
	out := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, f.from.Port()), f.to.Port())
	out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(out, f.seq), f.acked)
	out = append(out, 5<<4, f.flags, 0xff, 0xff, 0, 0, 0, 0)
	out = append(out, f.payload...)
	binary.BigEndian.PutUint16(out[16:], f.sum(out))
	return out
}

// sum is the checksum of a segment with its pseudo-header.
func (f frame) sum(segment []byte) uint16 {
	return checksum(f.from.Addr(), f.to.Addr(), f.protocol, segment)
}

// addBytes adds words of 16 bits.
func addBytes(sum uint32, bytes []byte) uint32 {
	for i := 0; i < len(bytes); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(bytes[i:]))
	}
	return sum
}

// foldChecksum returns the Internet checksum for a sum of 16-bit words (RFC 1071).
func foldChecksum(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func checksum(from, to netip.Addr, protocol uint8, segment []byte) uint16 {
	bytes := append(append([]byte{}, segment...), make([]byte, len(segment)%2)...)
	return foldChecksum(addBytes(addBytes(addBytes(uint32(protocol)+uint32(len(segment)), from.AsSlice()), to.AsSlice()), bytes))
}

func (f frame) ip(segment []byte) []byte {
	ttl := f.ttl
	if ttl == 0 {
		ttl = 64
	}
	if !f.v4() {
		next, extensions := f.protocol, f.options
		if len(f.options) > 0 {
			next = f.extension
		}
		if f.offset > 0 || f.more {
			header := []byte{next, 0, byte(f.offset >> 8), byte(f.offset&^7) | bit(f.more)}
			header = binary.BigEndian.AppendUint32(header, f.id)
			extensions, next = append(header, extensions...), 44
		}
		out := []byte{0x60, 0, 0, 0, 0, 0, next, ttl}
		binary.BigEndian.PutUint16(out[4:], uint16(len(extensions)+len(segment)))
		out = append(append(out, f.from.Addr().AsSlice()...), f.to.Addr().AsSlice()...)
		return append(append(out, extensions...), segment...)
	}
	length := 20 + len(f.options)
	out := make([]byte, length)
	out[0] = 0x40 | byte(length/4)
	binary.BigEndian.PutUint16(out[2:], uint16(length+len(segment)))
	binary.BigEndian.PutUint16(out[4:], uint16(f.id))
	flags := f.offset / 8
	if f.more {
		flags |= 0x2000
	}
	if !f.mayFragment && !f.more && f.offset == 0 {
		flags |= 0x4000
	}
	binary.BigEndian.PutUint16(out[6:], flags)
	out[8], out[9] = ttl, f.protocol
	copy(out[12:], f.from.Addr().AsSlice())
	copy(out[16:], f.to.Addr().AsSlice())
	copy(out[20:], f.options)
	binary.BigEndian.PutUint16(out[10:], foldChecksum(addBytes(0, out)))
	return append(out, segment...)
}

func bit(set bool) byte {
	if set {
		return 1
	}
	return 0
}

// seen is a parsed frame.
type seen struct {
	toMAC, fromMAC net.HardwareAddr
	from, to       netip.AddrPort
	protocol       uint8
	ttl            uint8
	flags          uint8
	seq, acked     uint32
	icmpType       uint8
	icmpCode       uint8
	payload        []byte // after the header of TCP, UDP or ICMP
	later          bool   // a fragment that is not the first one
	errors         []string
}

// dissect parses a frame, and records errors. It shares no code with the programs.
func dissect(bytes []byte) (s seen) {
	if len(bytes) < 14 {
		return seen{errors: []string{"no Ethernet header"}}
	}
	s.toMAC, s.fromMAC = bytes[:6], bytes[6:12]
	kind, packet := binary.BigEndian.Uint16(bytes[12:]), bytes[14:]
	switch {
	case kind == 0x0800 && len(packet) >= 20 && packet[0]>>4 == 4:
		s.readIPv4(packet)
	case kind == 0x86dd && len(packet) >= 40 && packet[0]>>4 == 6:
		s.readIPv6(packet)
	default:
		s.errors = append(s.errors, "no IP packet")
	}
	return s
}

// The length of the longest header does not fit into a byte.
func TestTheLongestExtensionHeaderIsDissected(t *testing.T) {
	const destinationOptions, most = 60, 255
	for name, length := range map[string]int{"cut": 64, "whole": (most + 1) * 8} {
		t.Run(name, func(t *testing.T) {
			options := make([]byte, length)
			options[0], options[1] = destinationOptions, most
			f := frame{from: netip.AddrPortFrom(theClient[false], 1), to: netip.AddrPortFrom(theVIP[false], 2), toMAC: clientMAC, options: options, extension: destinationOptions, raw: []byte{}}
			require.Equal(t, []string{"IPv6 extension header"}, dissect(f.bytes()).errors)
		})
	}
}

func (s *seen) readIPv4(packet []byte) {
	header, total := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:]))
	if header < 20 || total < header || total > len(packet) {
		s.errors = append(s.errors, fmt.Sprintf("IPv4 lengths %d of %d of %d", header, total, len(packet)))
		return
	}
	if foldChecksum(addBytes(0, packet[:header])) != 0 {
		s.errors = append(s.errors, "IPv4 header checksum")
	}
	s.protocol, s.ttl = packet[9], packet[8]
	from, _ := netip.AddrFromSlice(packet[12:16])
	to, _ := netip.AddrFromSlice(packet[16:20])
	fragment := binary.BigEndian.Uint16(packet[6:])
	s.readSegment(from, to, packet[header:total], fragment&0x1fff != 0, fragment&0x2000 != 0)
}

func (s *seen) readIPv6(packet []byte) {
	total := 40 + int(binary.BigEndian.Uint16(packet[4:]))
	if total > len(packet) {
		s.errors = append(s.errors, fmt.Sprintf("IPv6 length %d of %d", total, len(packet)))
		return
	}
	s.protocol, s.ttl = packet[6], packet[7]
	from, _ := netip.AddrFromSlice(packet[8:24])
	to, _ := netip.AddrFromSlice(packet[24:40])
	rest, later, more := packet[40:total], false, false
	for s.protocol == 0 || s.protocol == 43 || s.protocol == 44 || s.protocol == 60 {
		if len(rest) < 8 {
			s.errors = append(s.errors, "IPv6 extension header")
			return
		}
		length := (int(rest[1]) + 1) * 8
		if s.protocol == 44 {
			offset := binary.BigEndian.Uint16(rest[2:])
			later, more, length = offset&^7 != 0, offset&1 != 0, 8
		}
		if length > len(rest) {
			s.errors = append(s.errors, "IPv6 extension header")
			return
		}
		s.protocol, rest = rest[0], rest[length:]
		if later {
			break
		}
	}
	s.readSegment(from, to, rest, later, more)
}

// headerLength is the length field of the segment: that of the TCP header, or of the datagram.
func (s *seen) headerLength(segment []byte) int {
	if s.protocol == tcp {
		return int(segment[12]>>4) * 4
	}
	return int(binary.BigEndian.Uint16(segment[4:]))
}

func (s *seen) readSegment(from, to netip.Addr, segment []byte, later, more bool) {
	s.from, s.to, s.later = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0), later
	if later {
		s.payload = segment
		return
	}
	header := map[uint8]int{tcp: 20, udp: 8, icmp4: 8, icmp6: 8}[s.protocol]
	if len(segment) < header {
		s.errors = append(s.errors, "truncated segment")
		return
	}
	pseudo := s.protocol
	switch s.protocol {
	case tcp, udp:
		s.from, s.to = netip.AddrPortFrom(from, binary.BigEndian.Uint16(segment)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(segment[2:]))
		if said := s.headerLength(segment); said < header || !more && said > len(segment) {
			s.errors = append(s.errors, "length in the segment")
		}
		if s.protocol == tcp {
			s.seq, s.acked, s.flags = binary.BigEndian.Uint32(segment[4:]), binary.BigEndian.Uint32(segment[8:]), segment[13]
		}
	case icmp4, icmp6:
		s.icmpType, s.icmpCode = segment[0], segment[1]
	default:
		return
	}
	s.payload = segment[header:]
	noSum := s.protocol == udp && segment[6] == 0 && segment[7] == 0
	switch {
	case more, noSum && from.Is4():
	case s.protocol == icmp4:
		if foldChecksum(addBytes(0, append(append([]byte{}, segment...), make([]byte, len(segment)%2)...))) != 0 {
			s.errors = append(s.errors, "ICMP checksum")
		}
	case checksum(from, to, pseudo, segment) != 0:
		s.errors = append(s.errors, "checksum")
	}
}
