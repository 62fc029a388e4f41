// Package headers has IP packets with all fields of their headers, and compares a packet as it was sent with the packet as it
// arrived. It does no I/O.
package headers

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Protocol numbers (RFC 790, RFC 8200).
const (
	HopByHop    = 0
	ICMP        = 1
	TCP         = 6
	UDP         = 17
	Routing     = 43
	Fragment    = 44
	ICMPv6      = 58
	Destination = 60
)

// Bits of Packet.Fragment (RFC 791).
const (
	DontFragment  = 0x4000
	MoreFragments = 0x2000
	offsetBits    = 0x1fff
)

// Bits of Packet.Flags (RFC 9293). AE is of RFC 9768.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
	AE
	Reserved = 7 << 9
)

// Values of the ECN bits, the lower two of Packet.TrafficClass (RFC 3168).
const (
	ECT1                  = 1
	ECT0                  = 2
	CongestionExperienced = 3
	ecnBits               = 3
)

// Packet is an IP packet. Bytes computes lengths and checksums.
type Packet struct {
	Source, Target netip.AddrPort
	// TrafficClass has the DSCP in its upper six bits, and ECN in its lower two. TTL is the hop limit of IPv6.
	TrafficClass, TTL uint8
	// ID, Fragment (the flags and the offset) and Options are of IPv4. Options have a multiple of four bytes.
	ID, Fragment uint16
	Options      []byte
	// FlowLabel and Extensions are of IPv6.
	FlowLabel  uint32
	Extensions []Extension

	Protocol uint8
	// The fields of a TCP header. Options have a multiple of four bytes.
	Sequence, Acknowledged uint32
	Flags                  uint16
	Window, Urgent         uint16
	TCPOptions             []byte
	// Unsummed means that a datagram has no checksum.
	Unsummed bool
	// Payload is what follows the header of TCP or UDP; of another protocol, and of a later fragment, what follows the IP header.
	Payload []byte

	// Faults are sentences that say what is wrong with a packet that Parse has read. Bytes ignores them.
	Faults []string
}

// Extension is an extension header of IPv6, without the number of the next header. Its length is a multiple of eight bytes, less one.
type Extension struct {
	Type uint8
	// Rest is what follows the number of the next header, with the length.
	Rest []byte
}

// NewExtension returns an extension header with options, which it pads.
func NewExtension(kind uint8, options []byte) Extension {
	rest := append([]byte{0}, options...)
	switch missing := (8 - (len(rest)+1)%8) % 8; missing {
	case 0:
	case 1:
		rest = append(rest, 0) // Pad1
	default:
		rest = append(append(rest, 1, byte(missing-2)), make([]byte, missing-2)...) // PadN
	}
	rest[0] = byte((len(rest)+1)/8 - 1)
	return Extension{kind, rest}
}

// Is4 reports whether the packet is of IPv4.
func (p Packet) Is4() bool { return p.Target.Addr().Is4() }

// IsLaterFragment reports whether the packet is a fragment without the transport header. Fragments of IPv6 have an extension header, which
// their Extensions hold.
func (p Packet) IsLaterFragment() bool {
	if p.Is4() {
		return p.Fragment&offsetBits != 0
	}
	offset, _ := p.fragment6()
	return offset != 0
}

// isFragment reports whether the packet is a part of one, so that its transport checksum covers more than its payload.
func (p Packet) isFragment() bool {
	if p.Is4() {
		return p.Fragment&(offsetBits|MoreFragments) != 0
	}
	offset, more := p.fragment6()
	return offset != 0 || more
}

// fragment6 returns the offset and the flag of the fragment header.
func (p Packet) fragment6() (offset uint16, more bool) {
	for _, e := range p.Extensions {
		if e.Type == Fragment && len(e.Rest) == 7 {
			v := binary.BigEndian.Uint16(e.Rest[1:])
			return v &^ 7, v&1 != 0
		}
	}
	return 0, false
}

// String describes the packet in one line.
func (p Packet) String() string {
	text := fmt.Sprintf("%s > %s", p.Source, p.Target)
	switch p.Protocol {
	case TCP:
		text += fmt.Sprintf(" TCP %s, sequence %d, acknowledges %d", flagsText(p.Flags), p.Sequence, p.Acknowledged)
	case UDP:
		text += " UDP"
	default:
		text += fmt.Sprintf(" protocol %d", p.Protocol)
	}
	return fmt.Sprintf("%s, TTL %d, %d bytes of payload", text, p.TTL, len(p.Payload))
}

// Bytes returns the packet with its lengths and checksums.
func (p Packet) Bytes() []byte {
	transport := p.transport()
	if p.Is4() {
		header := make([]byte, 20, 20+len(p.Options))
		header = append(header, p.Options...)
		header[0], header[1], header[8], header[9] = 0x40|byte(len(header)/4), p.TrafficClass, p.TTL, p.Protocol
		binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(transport)))
		binary.BigEndian.PutUint16(header[4:], p.ID)
		binary.BigEndian.PutUint16(header[6:], p.Fragment)
		copy(header[12:], p.Source.Addr().AsSlice())
		copy(header[16:], p.Target.Addr().AsSlice())
		binary.BigEndian.PutUint16(header[10:], ^sum(header))
		return append(header, transport...)
	}
	var extensions []byte
	next := p.Protocol
	for i := len(p.Extensions) - 1; i >= 0; i-- {
		extensions = append(append([]byte{next}, p.Extensions[i].Rest...), extensions...)
		next = p.Extensions[i].Type
	}
	header := make([]byte, 40)
	binary.BigEndian.PutUint32(header, 6<<28|uint32(p.TrafficClass)<<20|p.FlowLabel&0xfffff)
	binary.BigEndian.PutUint16(header[4:], uint16(len(extensions)+len(transport)))
	header[6], header[7] = next, p.TTL
	copy(header[8:], p.Source.Addr().AsSlice())
	copy(header[24:], p.Target.Addr().AsSlice())
	return append(append(header, extensions...), transport...)
}

// transport returns the transport header and the payload.
func (p Packet) transport() []byte {
	if p.IsLaterFragment() || p.Protocol != TCP && p.Protocol != UDP {
		return p.Payload
	}
	header := make([]byte, 8, 20+len(p.TCPOptions))
	checksum := 6
	binary.BigEndian.PutUint16(header, p.Source.Port())
	binary.BigEndian.PutUint16(header[2:], p.Target.Port())
	if p.Protocol == TCP {
		checksum = 16
		header = append(header[:20], p.TCPOptions...)
		binary.BigEndian.PutUint32(header[4:], p.Sequence)
		binary.BigEndian.PutUint32(header[8:], p.Acknowledged)
		binary.BigEndian.PutUint16(header[12:], uint16(len(header)/4)<<12|p.Flags&0xfff)
		binary.BigEndian.PutUint16(header[14:], p.Window)
		binary.BigEndian.PutUint16(header[18:], p.Urgent)
	} else {
		binary.BigEndian.PutUint16(header[4:], uint16(8+len(p.Payload)))
	}
	out := append(header, p.Payload...)
	if p.Protocol == UDP && p.Unsummed {
		return out
	}
	value := ^p.transportSum(out)
	if value == 0 && p.Protocol == UDP {
		value = 0xffff // zero means that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(out[checksum:], value)
	return out
}

// transportSum is the sum of the pseudo header and of the transport header with its payload (RFC 9293, RFC 8200).
func (p Packet) transportSum(transport []byte) uint16 {
	pseudo := append(p.Source.Addr().AsSlice(), p.Target.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(transport)))
	pseudo = append(pseudo, 0, 0, 0, p.Protocol)
	return sum(append(pseudo, transport...))
}

// sum is the sum of the Internet checksum (RFC 1071).
func sum(b []byte) uint16 {
	var total uint32
	for i := 0; i+1 < len(b); i += 2 {
		total += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		total += uint32(b[len(b)-1]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
