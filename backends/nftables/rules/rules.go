// Package rules returns expressions of nftables rules as nft 1.0 compiles them, so that nft lists a rule as people would write it. It is for every
// dataplane with nftables rules.
package rules

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
)

// Register returns the number of the 32-bit register at a position. The first one in each 128-bit register has the number of the 128-bit register, as
// in nft.
func Register(word int) uint32 {
	if word%4 == 0 {
		return uint32(word/4 + 1)
	}
	return uint32(8 + word)
}

// Native encodes a number in the byte order of this host, as the kernel has marks and numbers of interfaces.
func Native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// Equals matches if the first register has the value.
func Equals(value ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: Register(0), Data: value}
}

func notEquals(value ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: Register(0), Data: value}
}

// bits masks the value of the first register.
func bits(mask ...byte) expr.Any {
	return &expr.Bitwise{SourceRegister: Register(0), DestRegister: Register(0), Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// Network loads bytes of the network header.
func Network(offset, size uint32, word int) expr.Any {
	return &expr.Payload{DestRegister: Register(word), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

// Transport loads bytes of the header of TCP, UDP or ICMP.
func Transport(offset, size uint32, word int) expr.Any {
	return &expr.Payload{DestRegister: Register(word), Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

// Destination loads destination, protocol and destination port, as elements.Frontend encodes them. address is the offset in the network header.
func Destination(address, size uint32, word int) []expr.Any {
	const destinationPort = 2
	return addressAndPort(address, size, destinationPort, word)
}

// Source loads source, protocol and source port.
func Source(address, size uint32, word int) []expr.Any {
	const sourcePort = 0
	return addressAndPort(address, size, sourcePort, word)
}

func addressAndPort(address, size, port uint32, word int) []expr.Any {
	words := int(size / 4)
	return []expr.Any{Network(address, size, word), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Register(word + words)}, Transport(port, 2, word+words+1)}
}

// Protocol matches packets of the protocol above IP.
func Protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Register(0)}, Equals(number)}
}

// ICMP matches packets of that type, of ICMP or ICMPv6 depending on the number of the protocol.
func ICMP(protocol, kind byte) []expr.Any {
	return append(Protocol(protocol), Transport(0, 1, 0), Equals(kind))
}

// A TCP segment opens a connection if of FIN, SYN, RST and ACK it has only SYN (RFC 9293, section 3.1).
const (
	flagsAt      = 13
	openingFlags = 0x17
	syn          = 0x02
	tcp          = 6
)

// Opening matches the TCP segment that opens a connection.
func Opening() []expr.Any {
	return append(Protocol(tcp), Transport(flagsAt, 1, 0), bits(openingFlags), Equals(syn))
}

// NotOpening matches all other TCP segments.
func NotOpening() []expr.Any {
	return append(Protocol(tcp), Transport(flagsAt, 1, 0), bits(openingFlags), notEquals(syn))
}

// EtherType matches packets of the protocol above Ethernet.
func EtherType(high, low byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: Register(0)}, Equals(high, low)}
}

// Meta matches packets with this metadata.
func Meta(key expr.MetaKey, value uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: Register(0)}, Equals(Native(value)...)}
}

// SetMeta sets metadata of the packet.
func SetMeta(key expr.MetaKey, value uint32) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: Register(0), Data: Native(value)}, &expr.Meta{Key: key, Register: Register(0), SourceRegister: true}}
}

// CtHas matches packets of flows with at least one of the bits in their entry of connection tracking. Such a rule turns connection tracking on.
func CtHas(key expr.CtKey, anyOf uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: key, Register: Register(0)}, bits(Native(anyOf)...), notEquals(Native(0)...)}
}

// Socket matches packets by the socket of this host that would get them if their destination belonged to the host.
func Socket(key expr.SocketKey, value byte) []expr.Any {
	return []expr.Any{&expr.Socket{Key: key, Register: Register(0)}, Equals(value)}
}

// In matches if the registers from this word on have an element of the set.
func In(set string, word int) expr.Any {
	return &expr.Lookup{SourceRegister: Register(word), SetName: set}
}

// Map loads the map's value for the registers. The rule ends if the map has no such element.
func Map(set string, from, to int) expr.Any {
	return &expr.Lookup{SourceRegister: Register(from), SetName: set, DestRegister: Register(to), IsDestRegSet: true}
}

// VerdictMap executes the verdict that the map has for the first registers.
func VerdictMap(set string) expr.Any {
	return &expr.Lookup{SourceRegister: Register(0), SetName: set, DestRegister: 0, IsDestRegSet: true}
}

// Goto continues with a chain that does not return here.
func Goto(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

// Jump continues with a chain that may return here.
func Jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

// Return returns to the calling chain.
func Return() expr.Any { return &expr.Verdict{Kind: expr.VerdictReturn} }

// Accept ends the chain of this hook, and lets the packet pass.
func Accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

// Drop drops the packet.
func Drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }
