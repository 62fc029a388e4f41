package envoy

import (
	"fmt"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/nftables/elements"
)

// ownerChecks checks for tables of another program with the same name, which a start replaces.
func ownerChecks(name string) []dataplane.Check {
	foreign, err := foreignTables(name)
	return preflight.Tables{Name: name, AtStart: "the dataplane replaces it when it starts", Costs: "what that program does with it",
		Advice: "or use another name for KubeLB's tables with --backend-option " + optionTable + "=NAME"}.Check(foreign, err)
}

// foreignTables returns the tables with the name that another program has made.
func foreignTables(name string) (foreign []string, err error) {
	c, err := elements.Connect()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables (needs CAP_NET_ADMIN): %w", err)
	}
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, t := range tables {
		var chains []string
		for _, chain := range all {
			if chain.Table.Name == t.Name && chain.Table.Family == t.Family {
				chains = append(chains, chain.Name)
			}
		}
		if t.Name == name && isForeign(t.Family, chains) {
			foreign = append(foreign, familyName(t.Family)+" "+name)
		}
	}
	return foreign, nil
}

// isForeign reports whether a table with the name, and with these chains, was made by another program.
func isForeign(family nft.TableFamily, chains []string) bool {
	switch family {
	case nft.TableFamilyIPv4, nft.TableFamilyIPv6:
		return preflight.IsForeign(chains, chainServe)
	case nft.TableFamilyNetdev:
		// This dataplane's table has no chains on a host without Ethernet interfaces.
		return len(chains) > 0 && preflight.IsForeign(chains, echoChain)
	}
	return false // this dataplane has no table of this family
}

// familyName returns nft's name of the table's family.
func familyName(family nft.TableFamily) string {
	return map[nft.TableFamily]string{nft.TableFamilyIPv4: "ip", nft.TableFamilyIPv6: "ip6", nft.TableFamilyNetdev: "netdev"}[family]
}
