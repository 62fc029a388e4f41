package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/nftables/elements"
)

// Close leaves everything in place, or with purge removes the tables. Established connections go on after that while the host
// has NAT rules, such as those of a backend that has taken over; all other flows are forgotten, so that it decides on them.
func (b *Backend) Close(_ context.Context, purge bool) error {
	if !purge {
		return nil
	}
	b.busy.Lock()
	defer b.busy.Unlock()
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	if err := b.removeTables(c); err != nil {
		return err
	}
	var errs []error
	for _, t := range b.tables {
		errs = append(errs, t.forget())
	}
	b.tables = nil
	return errors.Join(errs...)
}

// removeTables has the kernel come to the tables no more before it removes them: while it removes a table its maps are empty
// before its rules are gone, which would refuse what another backend already serves.
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
		ours := slices.ContainsFunc(present, func(t *nft.Table) bool { return t.Name == chain.Table.Name && t.Family == chain.Table.Family })
		if ours && chain.Hooknum != nil {
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

// forget ends all flows but established connections, once the table is gone.
func (t *table) forget() error {
	ended := newEnded()
	for vip := range t.state.vips {
		ended.vips[vip] = true
	}
	t.state = newState(t.layout.family)
	return t.dropStale(ended)
}
