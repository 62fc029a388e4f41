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
