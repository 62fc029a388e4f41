package envoy

import (
	"testing"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/assert"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
	"kubelb.k8c.io/backends/nftables/elements"
)

func TestPreflightNamesTablesOfAnotherProgramThatAStartReplaces(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		lines := func() (lines []string) {
			for _, c := range ownerChecks("kubelb-envoy") {
				assert.False(t, c.Required(), "the dataplane starts")
				lines = append(lines, c.String())
			}
			return lines
		}
		none := []string{"nftables tables kubelb-envoy: no other program has them"}
		assert.Equal(t, none, lines())
		c, err := elements.Connect()
		assert.NoError(t, err)
		assert.NoError(t, newRuleset("kubelb-envoy").add(c, untracked))
		assert.NoError(t, c.Flush())
		assert.Equal(t, none, lines(), "KubeLB's own tables")

		for _, family := range []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6, nft.TableFamilyNetdev, nft.TableFamilyINet} {
			c.DelTable(c.AddTable(&nft.Table{Name: "kubelb-envoy", Family: family}))
			c.AddChain(&nft.Chain{Name: "theirs", Table: c.AddTable(&nft.Table{Name: "kubelb-envoy", Family: family})})
		}
		assert.NoError(t, c.Flush())
		const advice = "     # or use another name for KubeLB's tables with --backend-option table=NAME"
		const becomes = ": another program has made it; the dataplane replaces it when it starts; does not work: what that program does with it; run: nft delete table "
		assert.ElementsMatch(t, []string{
			"nftables table ip kubelb-envoy" + becomes + "ip kubelb-envoy" + advice,
			"nftables table ip6 kubelb-envoy" + becomes + "ip6 kubelb-envoy" + advice,
			"nftables table netdev kubelb-envoy" + becomes + "netdev kubelb-envoy" + advice,
		}, lines(), "the ruleset has no table of family inet")
		assert.Equal(t, dataplane.CheckOK, ownerChecks("other")[0].State)
	})
}
