package ebpf

import (
	"fmt"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// Chains of the nftables tables that this dataplane creates at times.
const (
	natChain     = "keep"
	untrackChain = "untrack"
)

// ownerChecks look for tables of other programs that have the name of one of this dataplane's tables.
func ownerChecks() (checks []dataplane.Check) {
	for _, of := range []struct{ table, chain, becomes string }{
		{natTable, natChain, "the dataplane may add to it when it starts, and removes it when it is purged"},
		{untrackTable, untrackChain, "the dataplane removes it when it ends connections"},
	} {
		foreign, err := foreignTables(of.table, of.chain)
		checks = append(checks, preflight.Tables{Name: of.table, AtStart: of.becomes, Costs: "what that program does with it", Advice: "or give it another name"}.Check(foreign, err)...)
	}
	return checks
}

// foreignTables returns the tables of the name that do not have the chain.
func foreignTables(name, ownChain string) (foreign []string, err error) {
	c, err := nft.New()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	for _, family := range tableFamilies {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			return nil, fmt.Errorf("list nftables tables (needs CAP_NET_ADMIN): %w", err)
		}
		chains, err := c.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, fmt.Errorf("list nftables chains: %w", err)
		}
		var names []string
		for _, chain := range chains {
			if chain.Table.Name == name {
				names = append(names, chain.Name)
			}
		}
		for _, t := range tables {
			if t.Name == name && preflight.IsForeign(names, ownChain) {
				foreign = append(foreign, map[nft.TableFamily]string{nft.TableFamilyIPv4: "ip ", nft.TableFamilyIPv6: "ip6 "}[family]+name)
			}
		}
	}
	return foreign, nil
}
