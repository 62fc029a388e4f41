package nftables

import (
	"fmt"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/rules"
)

// A direct flow goes through conntrack and DNAT like any other: DNAT to the endpoint's address is what has the packet routed
// to the endpoint. All that was rewritten is put back on the packet's way out, so that only the Ethernet addresses differ:
// most of it in postrouting, but the destination only at the interface (hook egress), since the neighbour is looked up by
// it. There a packet's conntrack entry cannot be read; its mark, the frontend's number, tells the VIP.
//
// Conntrack sees only the client's half of a connection, as the node answers the client itself. One that begins with a SYN
// would never get beyond it. One that conntrack meets later it takes as it is (nf_conntrack_tcp_loose), and keeps for five
// minutes without a packet. So a SYN is disguised as an acknowledgement, with one of the header's reserved bits as the sign.
const (
	// directNumbers is where the numbers of direct frontends begin. A flow has its frontend's number as connection mark for
	// as long as it lives.
	directNumbers = 0x6c000000
	directMask    = 0xff000000
	// unansweredBit is set while only SYNs of a connection were seen.
	unansweredBit = 0x00800000
	// disguise exchanges, in the TCP header's word of length and flags, SYN for ACK and the sign.
	disguise    = 0x0212
	disguiseBit = 0x0200
)

// directChains are called ones before their callers.
func (l layout) directChains() []chain {
	return []chain{
		{name: "begin_direct", rules: [][]statement{
			{l.frontendIn(setRestricted), jump("check_source")},
			{isTCPOrUDP(l.protocols()), l.markFromFrontend(mapPools)},
			{markIn(setEmpty), goTo("refuse")},
			{clearMark()},
			{swapFlags()},
		}},
		{name: "restore_flags", rules: [][]statement{
			{isDisguised(), swapFlags(), noteUnanswered(), backToCaller()},
			{noteAnswered()},
		}},
		{name: "restore_direct", rules: [][]statement{
			{sourcePortAsItWas("tcp", unix.IPPROTO_TCP, 16)},
			{sourcePortAsItWas("udp", unix.IPPROTO_UDP, 6)},
			{isProtocol("tcp", unix.IPPROTO_TCP), jump("restore_flags")},
			{markFromFlow()},
		}},
		{name: "disguise", hook: nft.ChainHookPrerouting, kind: nft.ChainTypeFilter, priority: -300, text: "type filter hook prerouting priority raw; policy accept;",
			rules: [][]statement{
				{isSYN(), l.markFromFrontend(mapDirect), jump("begin_direct")},
				// Where the nodes' way to the client leads through this gateway, their answers are none of conntrack's business:
				// it would take them for flows of their own.
				{isTCPOrUDP(l.protocols()), l.markFromAnswer(mapDirect), clearMark(), untracked()},
			}},
		{name: "restore", hook: nft.ChainHookPostrouting, kind: nft.ChainTypeFilter, priority: 110, text: "type filter hook postrouting priority 110; policy accept;",
			rules: append([][]statement{{isDirectFlow(), goTo("restore_direct")}}, l.noteEndpointsEnd()...)},
	}
}

// leaveChains are those of the table that sees packets at the interface.
func leaveChains() []chain {
	chains := []chain{}
	leave := chain{name: "leave", rules: [][]statement{{isNotDirect(), accept()}}}
	for _, f := range families {
		restored := "restored_" + f.name
		// Of other protocols only ICMP errors belong to a flow.
		chains = append(chains, chain{name: restored, rules: [][]statement{
			{f.isICMP(), f.innerSourceAsItWas()},
			{clearMark()},
		}})
		leave.rules = append(leave.rules, []statement{f.destinationAsItWas(leaveMap(f)), goTo(restored)})
	}
	// What is left are flows of a frontend that is gone.
	leave.rules = append(leave.rules, []statement{drop()})
	return append(chains, leave)
}

// leaveMap tells the VIP by the number of a direct frontend.
func leaveMap(f family) string { return "vips_" + f.name }

// markFromAnswer sets the packet mark to what the map says of the frontend that the packet comes from.
func (f family) markFromAnswer(set string) statement {
	return statement{fmt.Sprintf("meta mark set %s saddr . meta l4proto . th sport map @%s", f.name, set), setMark(
		append(rules.Source(f.source, f.size, 0), rules.Map(set, 0, 0))...)}
}

func untracked() statement { return statement{"notrack", []expr.Any{&expr.Notrack{}}} }

func isSYN() statement { return statement{"tcp flags syn / fin,syn,rst,ack", rules.Opening()} }

func isDisguised() statement {
	return statement{fmt.Sprintf("@th,96,16 & 0x%x == 0x%x", disguiseBit, disguiseBit), []expr.Any{
		rules.Transport(12, 2, 0),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{disguiseBit >> 8, 0}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{disguiseBit >> 8, 0}},
	}}
}

// swapFlags disguises a SYN, or takes the disguise off. nft cannot word that the checksum follows; the kernel is told.
func swapFlags() statement {
	return statement{fmt.Sprintf("@th,96,16 set @th,96,16 ^ 0x%x", disguise), []expr.Any{
		rules.Transport(12, 2, 0),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xff}, Xor: []byte{disguise >> 8, disguise & 0xff}},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: 16},
	}}
}

// sourcePortAsItWas writes the client's port, which conntrack changes where two flows of one client would have the same
// way back. google/nftables v0.3.0 writes the direction in four bytes where the kernel has one. The kernel logs that and takes the first byte, 0, which is
// right for the original direction, and for no other one.
func sourcePortAsItWas(protocol string, number byte, checksum uint32) statement {
	return statement{protocol + " sport set ct original proto-src", append(isProtocol(protocol, number).exprs,
		&expr.Ct{Key: expr.CtKeyPROTOSRC, Register: 1},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum},
	)}
}

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

// destinationAsItWas writes the address that the client sent to. The kernel brings the checksum of the transport header, in
// which the addresses count, up to date; in IPv4 that of the network header, too.
func (f family) destinationAsItWas(vips string) statement {
	write := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.size,
		CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR}
	text := fmt.Sprintf("%s daddr set meta mark map @%s", f.name, vips)
	find := []expr.Any{loadMark(0), rules.Map(vips, 0, 0)}
	if f.v4 {
		return statement{text, append(append(rules.EtherType(0x08, 0x00), find...), write)}
	}
	// IPv6 has no checksum of its own, but the netlink library asks for the other one only beside such a one. So the flow
	// label takes the part of it, and gets its own value back.
	write.CsumOffset = 2
	keep := rules.Network(2, 2, 8)
	back := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: rules.Register(8), Base: expr.PayloadBaseNetworkHeader, Offset: 2, Len: 2}
	return statement{text + " @nh,16,16 set @nh,16,16", append(append(append(rules.EtherType(0x86, 0xdd), keep), find...), write, back)}
}

func (f family) isICMP() statement {
	if f.v4 {
		return isProtocol("icmp", unix.IPPROTO_ICMP)
	}
	return isProtocol("ipv6-icmp", unix.IPPROTO_ICMPV6)
}

// innerSourceAsItWas copies the destination of an ICMP error, which is the VIP again, to the source of the packet that it
// carries. In IPv4 that packet's own checksum makes up for it.
func (f family) innerSourceAsItWas() statement {
	from := rules.Network(f.destination, f.size, 0)
	to := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 8 + f.source, Len: f.size,
		CsumType: expr.CsumTypeInet, CsumOffset: 2}
	if f.v4 {
		to.CsumOffset = 8 + 10
	}
	bits := f.size * 8
	return statement{fmt.Sprintf("@th,%d,%d set @nh,%d,%d", to.Offset*8, bits, f.destination*8, bits), []expr.Any{from, to}}
}
