package nftables

import (
	"testing"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// attribute returns the value of an attribute in a list.
func attribute(t *testing.T, list []byte, kind uint16) []byte {
	t.Helper()
	all, err := netlink.UnmarshalAttributes(list)
	require.NoError(t, err)
	for _, a := range all {
		if a.Type&^unix.NLA_F_NESTED == kind {
			return a.Data
		}
	}
	require.Fail(t, "no such attribute")
	return nil
}

// The kernel takes one byte for the direction (NFTA_CT_DIRECTION of linux/netfilter/nf_tables.h, NLA_U8 in its policy), and reads the first one of more.
func TestTheKernelReadsThePortOfTheOriginalDirection(t *testing.T) {
	const original = 0 // IP_CT_DIR_ORIGINAL
	for _, f := range families {
		found := 0
		for _, e := range restoreSourcePort("tcp", nil, updatesChecksum(16)).exprs {
			if _, is := e.(*expr.Ct); !is {
				continue
			}
			found++
			marshalled, err := expr.Marshal(byte(f.table), e)
			require.NoError(t, err)
			direction := attribute(t, attribute(t, marshalled, unix.NFTA_EXPR_DATA), unix.NFTA_CT_DIRECTION)
			require.EqualValues(t, original, direction[0])
			require.Len(t, direction, 4, "google/nftables writes one byte now: remove the note about the kernel's log from README.md and restoreSourcePort")
		}
		require.Equal(t, 1, found)
	}
}
