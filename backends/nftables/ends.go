package nftables

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/hostflows"
)

// Connection tracking keeps the entry of a connection that has ended for a while, and of one that was not closed for days. A client that uses the port
// again reaches the endpoint of the former connection, which may have left the pool, so that nobody answers. So rules note what may end a
// connection: a reset, and a SYN of the client. They remove the note when the endpoint sends something else: then it ignored the reset, for example
// because of a wrong sequence number, or it answers the SYN. The plugin deletes noted entries whose endpoint gets no new connections
// (conntrack.go). Direct flows have unansweredBit for this.
//
// Notes are connection marks of flows to VIPs that no other program has marked. With slowBit the flow stays out of the flowtable. With endBit one side
// has reset the connection, or the client opens a new one, and the endpoint has sent nothing since. Most flows have no note.
const (
	notes   = 0x6b756200
	slowBit = 0x01
	endBit  = 0x02
)

// isNotedEnded reports whether a note says that the connection has ended. Connection tracking may not know that: up to Linux 6.12 it compares the
// reset's sequence number with the last one that it has seen itself, and takes a connection that was fast for established.
func isNotedEnded(f *hostflows.Flow) bool { return f.Mark&^slowBit == notes|endBit }

// TCP flags (RFC 9293, section 3.1).
const flagSYN, flagRST = 0x02, 0x04

// endChains returns the chains that set and remove notes.
func endChains() []chain {
	return []chain{
		{name: "note_end", rules: [][]statement{
			{hasFlowMark(0), setFlowMark(notes | endBit)},
			{hasFlowMark(notes | slowBit), setFlowMark(notes | slowBit | endBit)},
		}},
		{name: "note_answer", rules: [][]statement{
			{hasFlowMark(notes | endBit), setFlowMark(0)},
			{hasFlowMark(notes | slowBit | endBit), setFlowMark(notes | slowBit)},
		}},
	}
}

// noteClientEnd notes an end by the client. It is for packets to VIPs before they are rewritten.
func noteClientEnd() []statement {
	return []statement{hasFlags("syn,rst", flagSYN|flagRST), ctStatusDNAT(), jump("note_end")}
}

// noteEndpointEnd notes an end by the endpoint. It is for packets from VIPs after they were rewritten. All resets pass these rules, as they never take
// the fast path.
func (l layout) noteEndpointEnd() [][]statement {
	return [][]statement{
		{hasFlags("rst", flagRST), isAnswer(), ctStatusDNAT(), l.sourceIn(setVIPs), jump("note_end")},
		{isNotedEnd(), hasNotFlags("rst", flagRST), isAnswer(), jump("note_answer")},
	}
}

func isNotedEnd() statement {
	return statement{fmt.Sprintf("ct mark 0x%08x/31", notes|endBit),
		masked(loadCtMark(0), ^uint32(slowBit), 0, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark(notes | endBit)})}
}

// hasFlags matches TCP segments with one of the flags, hasNotFlags those with none of them.
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
