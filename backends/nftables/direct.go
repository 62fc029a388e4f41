package nftables

import (
	"fmt"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/rules"
)

// A direct flow passes connection tracking and DNAT like any other: DNAT to the endpoint's address routes the packet to the
// endpoint. All that was rewritten is restored before the packet leaves, so that only the Ethernet addresses differ. Most of
// it is restored in postrouting. The destination is restored at the interface (hook egress), since the MAC of the endpoint is
// looked up by it. There the entry of connection tracking cannot be read. The packet's mark, the frontend's number, leads to
// the VIP.
//
// Connection tracking sees only packets from the client, as the node answers the client itself. A connection that begins with
// a SYN would stay in state SYN_SENT. A connection that begins with another segment is taken as established
// (nf_conntrack_tcp_loose), and kept for five minutes without a packet. So connection tracking sees an ACK instead of a SYN. The
// packet's mark says so: no bit of the header could, because a client may set each of them.
const (
	// directNumbers is the first number of direct frontends. A flow has its frontend's number as connection mark.
	directNumbers = 0x6c000000
	directMask    = 0xff000000
	// unansweredBit is set while only SYNs of a connection were seen.
	unansweredBit = 0x00800000
	// disguise swaps SYN for ACK in the word of the TCP header that has length and flags. A disguised packet has the mark disguiseMark.
	disguise     = 0x0012
	disguiseMark = 0x6b756273
)

// directChains returns the chains for direct frontends, called ones before their callers.
func (l layout) directChains() []chain {
	return []chain{
		{name: "begin_direct", rules: [][]statement{
			{l.frontendIn(setRestricted), jump("check_source")},
			{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools)},
			{markIn(setEmpty), goTo("refuse")},
			{swapFlags(), markDisguised()},
		}},
		{name: "note_opening", rules: [][]statement{
			{isSYN(), noteUnanswered(), returnToCaller()},
			{noteAnswered()},
		}},
		{name: "restore_direct", rules: [][]statement{
			{restoreSourcePort("tcp", isProtocol("tcp", unix.IPPROTO_TCP).exprs, updatesChecksum(16))},
			{restoreSourcePort("udp checksum 0 udp", hasChecksum(expr.CmpOpEq), keepsChecksum())},
			{restoreSourcePort("udp checksum != 0 udp", hasChecksum(expr.CmpOpNeq), updatesChecksum(6))},
			{isProtocol("tcp", unix.IPPROTO_TCP), jump("note_opening")},
			{markFromFlow()},
		}},
		{name: "disguise", hook: nft.ChainHookPrerouting, kind: nft.ChainTypeFilter, priority: -300, text: "type filter hook prerouting priority raw; policy accept;",
			rules: [][]statement{
				{isSYN(), l.markFromFrontend(mapDirect), jump("begin_direct")},
				// If the nodes' route to the client leads through this gateway, connection tracking must not see their answers: it would
				// take them for new flows.
				{isTCPOrUDP(l.protocols()), l.markFromAnswer(mapDirect), clearMark(), untracked()},
			}},
		// This is behind connection tracking, and before the chains of other programs.
		{name: "undisguise", hook: nft.ChainHookPrerouting, kind: nft.ChainTypeFilter, priority: -199, text: "type filter hook prerouting priority -199; policy accept;",
			rules: [][]statement{{isDisguised(), swapFlags(), clearMark()}}},
		{name: "restore", hook: nft.ChainHookPostrouting, kind: nft.ChainTypeFilter, priority: 110, text: "type filter hook postrouting priority 110; policy accept;",
			rules: append([][]statement{{isDirectFlow(), goTo("restore_direct")}}, l.noteEndpointEnd()...)},
	}
}

// egressChains returns the chains of the table that sees packets at the interface.
func egressChains() []chain {
	chains := []chain{}
	leave := chain{name: "leave", rules: [][]statement{{isNotDirect(), accept()}}}
	for _, f := range families {
		restored := "restored_" + f.name
		// Besides TCP and UDP only ICMP errors belong to a flow.
		chains = append(chains, chain{name: restored, rules: [][]statement{
			{f.isICMP(), f.restoreInnerSource()},
			{clearMark()},
		}})
		leave.rules = append(leave.rules, []statement{f.restoreDestination(egressVIPMap(f)), goTo(restored)})
	}
	// The others are flows of a deleted frontend.
	leave.rules = append(leave.rules, []statement{drop()})
	return append(chains, leave)
}

// egressVIPMap returns the name of the map from the number of a direct frontend to its VIP.
func egressVIPMap(f family) string { return "vips_" + f.name }

// markFromAnswer sets the packet mark to the map's value for the frontend from which the packet comes.
func (f family) markFromAnswer(set string) statement {
	return statement{fmt.Sprintf("meta mark set %s saddr . meta l4proto . th sport map @%s", f.name, set), setMark(
		append(rules.Source(f.source, f.size, 0), rules.Map(set, 0, 0))...)}
}

func untracked() statement { return statement{"notrack", []expr.Any{&expr.Notrack{}}} }

func isSYN() statement { return statement{"tcp flags syn / fin,syn,rst,ack", rules.Opening()} }

func markDisguised() statement {
	return statement{fmt.Sprintf("meta mark set 0x%08x", disguiseMark), setMark(&expr.Immediate{Register: 1, Data: mark(disguiseMark)})}
}

func isDisguised() statement {
	return statement{fmt.Sprintf("meta l4proto tcp meta mark 0x%08x", disguiseMark),
		append(isProtocol("tcp", unix.IPPROTO_TCP).exprs, loadMark(0), rules.Equals(mark(disguiseMark)...))}
}

// swapFlags disguises a SYN, or removes the disguise. The kernel updates the checksum, for which nft has no syntax.
func swapFlags() statement {
	write := updatesChecksum(16)
	write.Offset = 12
	return statement{fmt.Sprintf("@th,96,16 set @th,96,16 ^ 0x%x", disguise), []expr.Any{
		rules.Transport(12, 2, 0),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xff}, Xor: []byte{disguise >> 8, disguise & 0xff}},
		write,
	}}
}

// restoreSourcePort restores the client's port. Connection tracking changes it if the answers to two flows of one client would have equal addresses and
// ports. google/nftables v0.3.0 writes the direction in four bytes, while the kernel has one. The kernel logs that and takes the first byte, 0, which is
// correct for the original direction only.
func restoreSourcePort(protocol string, match []expr.Any, write *expr.Payload) statement {
	return statement{protocol + " sport set ct original proto-src", append(match, &expr.Ct{Key: expr.CtKeyPROTOSRC, Register: 1}, write)}
}

// updatesChecksum writes two bytes at the beginning of the transport header, and updates the checksum at the offset.
func updatesChecksum(offset uint32) *expr.Payload {
	write := keepsChecksum()
	write.CsumType, write.CsumOffset = expr.CsumTypeInet, offset
	return write
}

// keepsChecksum writes two bytes at the beginning of the transport header. A datagram without a checksum needs this: the kernel would update the zero that
// stands for none (RFC 768) as if it were a checksum.
func keepsChecksum() *expr.Payload {
	return &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 2}
}

// hasChecksum matches datagrams whose checksum is not zero, or those whose checksum is.
func hasChecksum(comparedWith0 expr.CmpOp) []expr.Any {
	return append(isProtocol("udp", unix.IPPROTO_UDP).exprs, rules.Transport(6, 2, 0), &expr.Cmp{Op: comparedWith0, Register: 1, Data: []byte{0, 0}})
}

// masked loads a value, masks it and changes bits of it, before the expressions that follow.
func masked(load expr.Any, mask, xor uint32, then ...expr.Any) []expr.Any {
	return append([]expr.Any{load, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mark(mask), Xor: mark(xor)}}, then...)
}

func isDirectFlow() statement {
	return statement{fmt.Sprintf("ct mark 0x%08x/8", directNumbers),
		masked(loadCtMark(0), directMask, 0, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark(directNumbers)})}
}

func isNotDirect() statement {
	return statement{fmt.Sprintf("meta mark != 0x%08x/8", directNumbers),
		masked(loadMark(0), directMask, 0, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: mark(directNumbers)})}
}

func noteUnanswered() statement {
	return statement{fmt.Sprintf("ct mark set ct mark | 0x%08x", unansweredBit), setCtMark(masked(loadCtMark(0), ^uint32(unansweredBit), unansweredBit)...)}
}

func noteAnswered() statement {
	return statement{fmt.Sprintf("ct mark set ct mark & 0x%08x", ^uint32(unansweredBit)), setCtMark(masked(loadCtMark(0), ^uint32(unansweredBit), 0)...)}
}

func markFromFlow() statement {
	return statement{fmt.Sprintf("meta mark set ct mark & 0x%08x", ^uint32(unansweredBit)), setMark(masked(loadCtMark(0), ^uint32(unansweredBit), 0)...)}
}

// restoreDestination restores the address to which the client sent. The kernel updates the checksum of the transport header,
// which includes the addresses, and for IPv4 that of the network header.
func (f family) restoreDestination(vips string) statement {
	write := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.size,
		CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR}
	text := fmt.Sprintf("%s daddr set meta mark map @%s", f.name, vips)
	find := []expr.Any{loadMark(0), rules.Map(vips, 0, 0)}
	if f.v4 {
		return statement{text, append(append(rules.EtherType(0x08, 0x00), find...), write)}
	}
	// The header of IPv6 has no checksum, but the netlink library asks for an update of the transport header's checksum only
	// together with one. So the update goes to a part of the flow label, which is restored afterwards.
	write.CsumOffset = 2
	save := rules.Network(2, 2, 8)
	restore := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: rules.Register(8), Base: expr.PayloadBaseNetworkHeader, Offset: 2, Len: 2}
	return statement{text + " @nh,16,16 set @nh,16,16", append(append(append(rules.EtherType(0x86, 0xdd), save), find...), write, restore)}
}

func (f family) isICMP() statement {
	if f.v4 {
		return isProtocol("icmp", unix.IPPROTO_ICMP)
	}
	return isProtocol("ipv6-icmp", unix.IPPROTO_ICMPV6)
}

// restoreInnerSource copies the destination of an ICMP error, which is the VIP again, to the source of the packet in it. For
// IPv4 the update of that packet's checksum keeps the checksum of the ICMP message valid.
func (f family) restoreInnerSource() statement {
	from := rules.Network(f.destination, f.size, 0)
	to := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 8 + f.source, Len: f.size,
		CsumType: expr.CsumTypeInet, CsumOffset: 2}
	if f.v4 {
		to.CsumOffset = 8 + 10
	}
	bits := f.size * 8
	return statement{fmt.Sprintf("@th,%d,%d set @nh,%d,%d", to.Offset*8, bits, f.destination*8, bits), []expr.Any{from, to}}
}
