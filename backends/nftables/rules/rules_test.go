package rules

import (
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// positionOf returns the position of the 32-bit register with the number. Some registers have two numbers.
func positionOf(register uint32) int {
	if register < unix.NFT_REG32_00 {
		return int(register-1) * 4
	}
	return int(register - unix.NFT_REG32_00)
}

// A lookup compares the key of an element with consecutive registers.
func TestAFrontendIsLoadedAsElementsAreEncoded(t *testing.T) {
	for vip, family := range map[string]struct{ offset, size uint32 }{"203.0.113.1": {16, 4}, "2001:db8:f::1": {24, 16}} {
		key := elements.Frontend(model.FrontendKey{VIP: netip.MustParseAddr(vip), Protocol: model.UDP, Port: 53})
		for _, word := range []int{0, 4} {
			for port, end := range map[uint32][]expr.Any{2: Destination(family.offset, family.size, word), 0: Source(family.offset, family.size, word)} {
				address, protocol, ports := end[0].(*expr.Payload), end[1].(*expr.Meta), end[2].(*expr.Payload)
				words := int(family.size / 4)
				require.Equal(t, word, positionOf(address.DestRegister))
				require.Equal(t, word+words, positionOf(protocol.Register))
				require.Equal(t, word+words+1, positionOf(ports.DestRegister))
				require.Equal(t, port, ports.Offset)
				require.Len(t, key, 4*(words+2), "each part fills whole registers")
			}
		}
	}
}

func TestOpeningAndNotOpeningAreOpposites(t *testing.T) {
	opening, other := Opening(), NotOpening()
	last := len(opening) - 1
	require.Equal(t, opening[:last], other[:last], "they look at the same flags")
	is, isNot := opening[last].(*expr.Cmp), other[last].(*expr.Cmp)
	require.Equal(t, is.Data, isNot.Data)
	require.Equal(t, [2]expr.CmpOp{expr.CmpOpEq, expr.CmpOpNeq}, [2]expr.CmpOp{is.Op, isNot.Op})
}

func TestTheFirstRegisterOfEachFourHasTheNumberOfTheWholeRegister(t *testing.T) {
	for word, want := range []uint32{1, 9, 10, 11, 2, 13, 14, 15, 3} {
		require.Equal(t, want, Register(word), "word %d", word)
		require.Equal(t, word, positionOf(Register(word)))
	}
}

func TestARuleComparesWhatItHasLoaded(t *testing.T) {
	for name, c := range map[string]struct {
		rule []expr.Any
		data []byte
		op   expr.CmpOp
	}{
		"protocol":  {Protocol(17), []byte{17}, expr.CmpOpEq},
		"ICMP":      {ICMP(1, 8), []byte{8}, expr.CmpOpEq},
		"EtherType": {EtherType(0x86, 0xdd), []byte{0x86, 0xdd}, expr.CmpOpEq},
		"metadata":  {Meta(expr.MetaKeyMARK, 7), Native(7), expr.CmpOpEq},
		"state":     {CtHas(expr.CtKeySTATE, expr.CtStateBitNEW), Native(0), expr.CmpOpNeq},
		"socket":    {Socket(expr.SocketKeyTransparent, 1), []byte{1}, expr.CmpOpEq},
	} {
		last, ok := c.rule[len(c.rule)-1].(*expr.Cmp)
		require.True(t, ok, name)
		require.Equal(t, expr.Cmp{Op: c.op, Register: Register(0), Data: c.data}, *last, name)
	}
}

func TestAnICMPTypeIsReadOnlyInPacketsOfItsProtocol(t *testing.T) {
	rule := ICMP(58, 128)
	require.Equal(t, Protocol(58), rule[:2])
	require.Equal(t, Transport(0, 1, 0), rule[2])
}

func TestBitsOfConnectionTrackingAreMaskedBeforeTheyAreCompared(t *testing.T) {
	rule := CtHas(expr.CtKeySTATUS, 0x20)
	require.Equal(t, &expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, rule[0])
	masked, ok := rule[1].(*expr.Bitwise)
	require.True(t, ok)
	require.Equal(t, Native(0x20), masked.Mask)
	require.Equal(t, make([]byte, 4), masked.Xor, "no bit is changed")
}

func TestMetadataIsSetFromTheRegisterThatHasTheValue(t *testing.T) {
	rule := SetMeta(expr.MetaKeyMARK, 7)
	require.Equal(t, []expr.Any{&expr.Immediate{Register: 1, Data: Native(7)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}, rule)
}

func TestOnlyAMapLoadsAValue(t *testing.T) {
	require.Equal(t, &expr.Lookup{SourceRegister: Register(5), SetName: "vips"}, In("vips", 5))
	require.Equal(t, &expr.Lookup{SourceRegister: Register(4), SetName: "ports", DestRegister: Register(6), IsDestRegSet: true}, Map("ports", 4, 6))
	require.Equal(t, &expr.Lookup{SourceRegister: 1, SetName: "asks", IsDestRegSet: true}, VerdictMap("asks"), "register 0 is the verdict")
}

func TestVerdictsWithAChainNameIt(t *testing.T) {
	for kind, verdict := range map[expr.VerdictKind]expr.Any{expr.VerdictGoto: Goto("c"), expr.VerdictJump: Jump("c")} {
		require.Equal(t, &expr.Verdict{Kind: kind, Chain: "c"}, verdict)
	}
	for kind, verdict := range map[expr.VerdictKind]expr.Any{expr.VerdictReturn: Return(), expr.VerdictAccept: Accept(), expr.VerdictDrop: Drop()} {
		require.Equal(t, &expr.Verdict{Kind: kind}, verdict)
	}
}
