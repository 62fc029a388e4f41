package ebpf

import (
	"fmt"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// keepTable is a table of nftables that decides nothing: it keeps the kernel rewriting the connections which a dataplane that was
// here before began with its rules, when those go. The programs leave such connections to the host.
const keepTable = "kubelb-ebpf"

var keepFamilies = []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6}

// keepRewriting makes the table where somebody has chains for NAT.
func keepRewriting() error {
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
	for _, family := range keepFamilies {
		table := c.AddTable(&nft.Table{Name: keepTable, Family: family})
		c.AddChain(&nft.Chain{Table: table, Name: keepChain, Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPrerouting, Priority: nft.ChainPriorityNATDest})
		// A chain for NAT alone does not have connections tracked; one that asks about them does.
		track := c.AddChain(&nft.Chain{Table: table, Name: "track", Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookPrerouting, Priority: nft.ChainPriorityFilter})
		c.AddRule(&nft.Rule{Table: table, Chain: track, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make nftables table %s: %w", keepTable, err)
	}
	return nil
}

// removeTables removes both families' tables of the name, if they are there.
func removeTables(name string) error {
	c, err := nft.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	for _, family := range keepFamilies {
		c.DelTable(c.AddTable(&nft.Table{Name: name, Family: family}))
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", name, err)
	}
	return nil
}
