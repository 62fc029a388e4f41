package ebpf

import (
	"testing"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/assert"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

func TestPreflightNamesTablesOfAnotherProgramThatTheDataplaneRemoves(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		lacking := func() (lines []string) {
			for _, c := range dataplane.Lacking(ownerChecks()) {
				assert.False(t, c.Required(), "the dataplane starts")
				lines = append(lines, c.Subject+": "+c.Command)
			}
			return lines
		}
		assert.Empty(t, lacking())
		c, err := nft.New()
		assert.NoError(t, err)
		c.AddChain(&nft.Chain{Name: "postrouting", Table: c.AddTable(&nft.Table{Name: "nat", Family: nft.TableFamilyIPv4}), Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPostrouting, Priority: nft.ChainPriorityNATSource})
		assert.NoError(t, c.Flush())
		assert.NoError(t, keepNAT())
		untrack, err := untrackMarked()
		assert.NoError(t, err)
		assert.Empty(t, lacking(), "both tables are this dataplane's")
		assert.NoError(t, untrack())
		assert.NoError(t, removeTables(natTable))

		c.AddTable(&nft.Table{Name: natTable, Family: nft.TableFamilyIPv4})
		c.AddChain(&nft.Chain{Name: "other", Table: c.AddTable(&nft.Table{Name: untrackTable, Family: nft.TableFamilyIPv6})})
		assert.NoError(t, c.Flush())
		assert.Equal(t, []string{
			"nftables table ip kubelb-ebpf: nft delete table ip kubelb-ebpf",
			"nftables table ip6 kubelb-ebpf-end: nft delete table ip6 kubelb-ebpf-end",
		}, lacking())
	})
}
