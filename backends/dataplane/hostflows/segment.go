package hostflows

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// TCP flags (RFC 9293, section 3.1).
const (
	ACK     = 0x10
	flagRST = 0x04
)

const tcpHeader = 20

// Segment returns an IP packet from Local to Remote with a TCP segment without data, for a raw socket (IPPROTO_RAW in raw(7)).
func Segment(c Connection, flags byte, sequence uint32) []byte {
	from, to := c.Local.Addr(), c.Remote.Addr()
	segment := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(segment[0:], c.Local.Port())
	binary.BigEndian.PutUint16(segment[2:], c.Remote.Port())
	binary.BigEndian.PutUint32(segment[4:], sequence)
	segment[12], segment[13] = tcpHeader/4<<4, flags
	sum := addBytes(addBytes(addBytes(uint32(unix.IPPROTO_TCP)+tcpHeader, from.AsSlice()), to.AsSlice()), segment)
	binary.BigEndian.PutUint16(segment[16:], foldChecksum(sum))
	if from.Is4() {
		ip := make([]byte, 20) // the kernel fills in length, identification and checksum (raw(7))
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
		copy(ip[12:], from.AsSlice())
		copy(ip[16:], to.AsSlice())
		return append(ip, segment...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_TCP, 64
	binary.BigEndian.PutUint16(ip[4:], tcpHeader)
	copy(ip[8:], from.AsSlice())
	copy(ip[24:], to.AsSlice())
	return append(ip, segment...)
}

// parseSegment reads a TCP segment of a remote host. It leaves out fragments, and IPv6 packets with extension headers.
func parseSegment(packet []byte) (c Connection, flags byte, acknowledged uint32, ok bool) {
	var from, to netip.Addr
	var segment []byte
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(packet[6:])&0x1fff == 0:
		from, to = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		segment = packet[min(len(packet), int(packet[0]&15)*4):]
	case len(packet) >= 40 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_TCP:
		from, to = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		segment = packet[40:]
	}
	if len(segment) < tcpHeader {
		return c, 0, 0, false
	}
	c = Connection{Local: netip.AddrPortFrom(to, binary.BigEndian.Uint16(segment[2:])), Remote: netip.AddrPortFrom(from, binary.BigEndian.Uint16(segment))}
	return c, segment[13], binary.BigEndian.Uint32(segment[8:]), true
}

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
