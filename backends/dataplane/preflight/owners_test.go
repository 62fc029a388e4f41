package preflight

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
)

func TestEachTableOfAnotherProgramHasALineWithItsCommand(t *testing.T) {
	tables := Tables{Name: "kubelb", AtStart: "the dataplane does not start beside it", Advice: "or give KubeLB's another name"}
	var lines []string
	for _, c := range tables.Check([]string{"ip kubelb", "netdev kubelb"}, nil) {
		require.True(t, c.Required())
		lines = append(lines, c.String())
	}
	require.Equal(t, []string{
		"nftables table ip kubelb: another program has made it; the dataplane does not start beside it; run: nft delete table ip kubelb     # or give KubeLB's another name",
		"nftables table netdev kubelb: another program has made it; the dataplane does not start beside it; run: nft delete table netdev kubelb     # or give KubeLB's another name",
	}, lines)
	none := tables.Check(nil, nil)
	require.Len(t, none, 1)
	require.Equal(t, "nftables tables kubelb: no other program has them", none[0].String())
	unknown := tables.Check(nil, errors.New("no permission"))
	require.Equal(t, dataplane.CheckUnknown, unknown[0].State)
}

func TestATableWithoutAChainOfKubeLBIsForeign(t *testing.T) {
	require.False(t, IsForeign([]string{"other", "layout-9"}, "layout-"))
	require.True(t, IsForeign([]string{"other"}, "layout-"))
	require.True(t, IsForeign(nil, "layout-"))
}
