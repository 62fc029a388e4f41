package transit

import (
	"fmt"
	"slices"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// OwnerChecks looks for a table of another program under the filter's name.
func OwnerChecks() []dataplane.Check {
	foreign, err := foreignTables()
	return preflight.Tables{Name: tableName, AtStart: "the gateway removes it when it starts", Costs: "what that program does with the table", Advice: "or give the table another name"}.Check(foreign, err)
}

// foreignTables returns the table of the filter's name if it has no set of segments.
func foreignTables() ([]string, error) {
	c, err := nft.New()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	there, err := tableExists(c)
	if err != nil || !there {
		return nil, err
	}
	sets, err := c.GetSets(&nft.Table{Name: tableName, Family: nft.TableFamilyINet})
	if err != nil {
		return nil, fmt.Errorf("list sets of nftables table inet %s: %w", tableName, err)
	}
	if slices.ContainsFunc(sets, func(s *nft.Set) bool { return s.Name == setSegments }) {
		return nil, nil
	}
	return []string{"inet " + tableName}, nil
}
