package nftables

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/hostflows"
)

// Conntrack keeps the entry of a connection that has ended for a while, and for days where nobody has ended it. A client that takes the port
// again reaches the endpoint of then. If that has left the pool nobody answers. So rules note what may be the end of a connection: a
// reset, and a SYN of the client's. They take the note back when the endpoint sends something else: then the reset was none for the endpoint,
// as one with a wrong sequence number, or the endpoint is there and answers the SYN. The backend deletes what is noted and whose endpoint
// gets no new connections (conntrack.go). A direct flow has a sign of its own for this (unansweredBit).
//
// Notes are connection marks of flows of ours that no other program has marked. slowBit: the flow stays out of the flowtable. endBit: an end has
// reset the connection, or the client opens another one, and nothing has come from the endpoint since. Most flows have none.
const (
	notes   = 0x6b756200
	slowBit = 0x01
	endBit  = 0x02
)

// mayHaveEnded reports whether the connection is noted to have ended. Conntrack may not know that: up to Linux 6.12 it compares the reset's
// sequence number with the last one that it has seen itself, and takes a connection that was fast for established.
func mayHaveEnded(f *hostflows.Flow) bool { return f.Mark&^slowBit == notes|endBit }

// TCP flags (RFC 9293, section 3.1).
const flagSYN, flagRST = 0x02, 0x04

// endChains take notes.
func endChains() []chain {
	return []chain{
		{name: "note_end", rules: [][]statement{
			{isFlow(0), takeFlow(notes | endBit)},
			{isFlow(notes | slowBit), takeFlow(notes | slowBit | endBit)},
		}},
		{name: "note_answer", rules: [][]statement{
			{isFlow(notes | endBit), takeFlow(0)},
			{isFlow(notes | slowBit | endBit), takeFlow(notes | slowBit)},
		}},
	}
}

// noteClientsEnd is for a packet to a VIP, before it is rewritten.
func noteClientsEnd() []statement {
	return []statement{hasFlags("syn,rst", flagSYN|flagRST), ctStatusDNAT(), jump("note_end")}
}

// noteEndpointsEnd is for packets from VIPs, once they are rewritten. Each reset meets these rules, as none takes the fast path.
func (l layout) noteEndpointsEnd() [][]statement {
	return [][]statement{
		{hasFlags("rst", flagRST), isAnswer(), ctStatusDNAT(), l.sourceIn(setVIPs), jump("note_end")},
		{isNotedEnd(), hasNotFlags("rst", flagRST), isAnswer(), jump("note_answer")},
	}
}

func isNotedEnd() statement {
	return statement{fmt.Sprintf("ct mark 0x%08x/31", notes|endBit),
		masked(loadCtMark(0), ^uint32(slowBit), 0, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark(notes | endBit)})}
}

// hasFlags matches a TCP segment that has one of the flags, hasNotFlags one that has none of them.
func hasFlags(text string, flags byte) statement {
	return statement{"tcp flags " + text, tcpFlags(flags, expr.CmpOpNeq)}
}

func hasNotFlags(text string, flags byte) statement {
	return statement{"tcp flags ! " + text, tcpFlags(flags, expr.CmpOpEq)}
}

func tcpFlags(flags byte, comparedWith0 expr.CmpOp) []expr.Any {
	const flagsAt = 13
	return append(isProtocol("tcp", unix.IPPROTO_TCP).exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{flags}, Xor: []byte{0}},
		&expr.Cmp{Op: comparedWith0, Register: 1, Data: []byte{0}})
}
