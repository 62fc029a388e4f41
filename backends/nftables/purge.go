package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/nftables/elements"
)

// Close keeps everything, or removes the tables with purge. After a purge established connections go on while the host has NAT
// rules, such as those of a dataplane that replaces this one. All other flows are deleted, so that the new dataplane decides on
// them.
func (b *Backend) Close(_ context.Context, purge bool) error {
	if !purge {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	if err := b.removeTables(c); err != nil {
		return err
	}
	var errs []error
	for _, t := range b.tables {
		errs = append(errs, t.dropFlows())
	}
	b.tables = nil
	return errors.Join(errs...)
}

// removeTables removes the base chains before the tables: while the kernel removes a table, its maps are empty before its rules
// are gone, so that the rules would refuse flows that another dataplane already serves.
func (b *Backend) removeTables(c *nft.Conn) error {
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	all := []*nft.Table{b.egress.nft}
	for _, t := range b.tables {
		all = append(all, t.nft)
	}
	var present []*nft.Table
	for _, t := range all {
		if found, _, err := find(c, t); err != nil {
			return err
		} else if found {
			present = append(present, t)
		}
	}
	for _, chain := range chains {
		owned := slices.ContainsFunc(present, func(t *nft.Table) bool { return t.Name == chain.Table.Name && t.Family == chain.Table.Family })
		if owned && chain.Hooknum != nil {
			c.DelChain(chain)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables chains: %w", err)
	}
	for _, t := range present {
		c.DelTable(t)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables tables: %w", err)
	}
	return nil
}

// dropFlows deletes all flows except established connections, after the table was removed.
func (t *table) dropFlows() error {
	ended := newEnded()
	for vip := range t.state.vips {
		ended.vips[vip] = true
	}
	t.state = newState(t.layout.family)
	return t.dropStale(ended)
}
