package ebpf

import (
	"fmt"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// natTable is an nftables table without a verdict. Its NAT chain makes the kernel go on rewriting connections that a former dataplane began, after the rules of that
// one are gone. The programs leave such connections to the host.
const natTable = "kubelb-ebpf"

var tableFamilies = []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6}

// keepNAT creates natTable if any program has NAT chains on this host.
func keepNAT() error {
	c, err := nft.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("list nftables chains (needs CAP_NET_ADMIN): %w", err)
	}
	if !slices.ContainsFunc(chains, func(chain *nft.Chain) bool { return chain.Type == nft.ChainTypeNAT }) {
		return nil
	}
	for _, family := range tableFamilies {
		table := c.AddTable(&nft.Table{Name: natTable, Family: family})
		c.AddChain(&nft.Chain{Table: table, Name: natChain, Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPrerouting, Priority: nft.ChainPriorityNATDest})
		// A NAT chain alone does not turn connection tracking on. A rule that reads its state does.
		track := c.AddChain(&nft.Chain{Table: table, Name: "track", Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookPrerouting, Priority: nft.ChainPriorityFilter})
		c.AddRule(&nft.Rule{Table: table, Chain: track, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("create nftables table %s: %w", natTable, err)
	}
	return nil
}

// removeTables removes the tables of the name of both families, if they exist.
func removeTables(name string) error {
	c, err := nft.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	for _, family := range tableFamilies {
		c.DelTable(c.AddTable(&nft.Table{Name: name, Family: family}))
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", name, err)
	}
	return nil
}
