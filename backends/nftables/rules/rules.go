// Package rules makes the expressions of nftables rules as nft 1.0 compiles them, so that nft lists a rule as people would write it. It is for every
// dataplane that has rules of nftables.
package rules

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
)

// Register is the number of a 32-bit register, by its position. The first one of each 128-bit register has the number of the 128-bit register, as nft
// writes it.
func Register(word int) uint32 {
	if word%4 == 0 {
		return uint32(word/4 + 1)
	}
	return uint32(8 + word)
}

// Native is a number in this host's order of bytes, as the kernel keeps marks and numbers of interfaces.
func Native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// Equals compares what was loaded into the first register.
func Equals(value ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: Register(0), Data: value}
}

func isNot(value ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: Register(0), Data: value}
}

// bits keeps the bits of what was loaded into the first register.
func bits(mask ...byte) expr.Any {
	return &expr.Bitwise{SourceRegister: Register(0), DestRegister: Register(0), Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// Network loads so many bytes of the network header.
func Network(offset, size uint32, word int) expr.Any {
	return &expr.Payload{DestRegister: Register(word), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

// Transport loads so many bytes of the header of TCP, UDP or ICMP.
func Transport(offset, size uint32, word int) expr.Any {
	return &expr.Payload{DestRegister: Register(word), Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

// Destination loads destination, protocol and destination port, as elements.Frontend writes them. The address lies at the offset in the network header.
func Destination(address, size uint32, word int) []expr.Any {
	const destinationPort = 2
	return flowEnd(address, size, destinationPort, word)
}

// Source loads source, protocol and source port.
func Source(address, size uint32, word int) []expr.Any {
	const sourcePort = 0
	return flowEnd(address, size, sourcePort, word)
}

func flowEnd(address, size, port uint32, word int) []expr.Any {
	words := int(size / 4)
	return []expr.Any{Network(address, size, word), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Register(word + words)}, Transport(port, 2, word+words+1)}
}

// Protocol matches packets of the protocol above IP.
func Protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Register(0)}, Equals(number)}
}

// ICMP matches packets of that type, of ICMP or ICMPv6 by the number of the protocol.
func ICMP(protocol, kind byte) []expr.Any {
	return append(Protocol(protocol), Transport(0, 1, 0), Equals(kind))
}

// Of the flags of TCP, FIN, SYN, RST and ACK say whether a segment opens a connection (RFC 9293, section 3.1).
const (
	flagsAt      = 13
	openingFlags = 0x17
	syn          = 0x02
	tcp          = 6
)

// Opening matches the segment of TCP that opens a connection.
func Opening() []expr.Any {
	return append(Protocol(tcp), Transport(flagsAt, 1, 0), bits(openingFlags), Equals(syn))
}

// NotOpening matches all other segments of TCP.
func NotOpening() []expr.Any {
	return append(Protocol(tcp), Transport(flagsAt, 1, 0), bits(openingFlags), isNot(syn))
}

// EtherType matches packets of the protocol above Ethernet.
func EtherType(high, low byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: Register(0)}, Equals(high, low)}
}

// Meta matches packets of which the kernel has noted the value.
func Meta(key expr.MetaKey, value uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: Register(0)}, Equals(Native(value)...)}
}

// SetMeta has the kernel note the value of the packet.
func SetMeta(key expr.MetaKey, value uint32) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: Register(0), Data: Native(value)}, &expr.Meta{Key: key, Register: Register(0), SourceRegister: true}}
}

// CtHas matches packets of flows of which connection tracking says at least one of the bits. Where there is such a rule flows are tracked.
func CtHas(key expr.CtKey, anyOf uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: key, Register: Register(0)}, bits(Native(anyOf)...), isNot(Native(0)...)}
}

// Socket asks about the socket of this host that the packet would meet if its destination were the host's own.
func Socket(key expr.SocketKey, value byte) []expr.Any {
	return []expr.Any{&expr.Socket{Key: key, Register: Register(0)}, Equals(value)}
}

// In matches if what was loaded from the word on is in the set.
func In(set string, word int) expr.Any {
	return &expr.Lookup{SourceRegister: Register(word), SetName: set}
}

// Map loads what the map says of what was loaded. The rule ends if it says nothing.
func Map(set string, from, to int) expr.Any {
	return &expr.Lookup{SourceRegister: Register(from), SetName: set, DestRegister: Register(to), IsDestRegSet: true}
}

// VerdictMap does what the map of verdicts says of what was loaded from the first word on.
func VerdictMap(set string) expr.Any {
	return &expr.Lookup{SourceRegister: Register(0), SetName: set, DestRegister: 0, IsDestRegSet: true}
}

// Goto goes on with a chain, and does not come back.
func Goto(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

// Jump goes on with a chain that may return.
func Jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

// Return goes back to the chain that has jumped here.
func Return() expr.Any { return &expr.Verdict{Kind: expr.VerdictReturn} }

// Accept ends the way of the packet through this hook's chain.
func Accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

// Drop drops the packet.
func Drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }
