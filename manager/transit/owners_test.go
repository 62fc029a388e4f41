package transit

import (
	"testing"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/assert"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

func TestPreflightNamesATableOfAnotherProgramUnderTheFiltersName(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		says := func() string {
			checks := OwnerChecks()
			assert.Len(t, checks, 1)
			return checks[0].String()
		}
		const none = "nftables tables kubelb-transit: no other program has them"
		assert.Equal(t, none, says())
		assert.NoError(t, (&Filter{}).Apply(Rules{Segments: []string{"lo"}}))
		assert.Equal(t, none, says(), "the filter itself")
		c, err := nft.New()
		assert.NoError(t, err)
		c.DelTable(&nft.Table{Name: tableName, Family: nft.TableFamilyINet})
		c.AddChain(&nft.Chain{Name: "forward", Table: c.AddTable(&nft.Table{Name: tableName, Family: nft.TableFamilyINet})})
		assert.NoError(t, c.Flush())
		assert.Equal(t, "nftables table inet kubelb-transit: another program has made it; the gateway removes it when it starts; does not work: what that program does with the table; "+
			"run: nft delete table inet kubelb-transit     # or give the table another name", says())
	})
}
