package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// Close keeps everything, or removes the tables with purge. If the host has other NAT rules then, such as those of a dataplane that replaces this one,
// established connections go on. Otherwise they are reset. All other flows are deleted, so that the new dataplane decides on them.
func (b *Backend) Close(ctx context.Context, purge bool) error {
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
	rewrites, err := hasNAT(c)
	if err != nil {
		return err
	}
	var errs []error
	var open []hostflows.Connection
	for _, t := range b.tables {
		if !rewrites {
			found, err := t.endFlows()
			open, errs = append(open, found...), append(errs, err)
		}
		errs = append(errs, t.dropFlows())
	}
	b.tables = nil
	return errors.Join(append(errs, hostflows.Reset(ctx, open))...)
}

// hasNAT reports whether the host has NAT rules.
func hasNAT(c *nft.Conn) (bool, error) {
	chains, err := c.ListChains()
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	return slices.ContainsFunc(chains, func(chain *nft.Chain) bool { return chain.Type == nft.ChainTypeNAT }), nil
}

// endFlows deletes all flows to frontends, after the table was removed. It returns the ends of the connections that were open.
func (t *table) endFlows() (open []hostflows.Connection, err error) {
	err = hostflows.EachTracked(t.layout.v4, func(f *hostflows.Flow) bool {
		if t.state.frontends[f.Frontend()] == nil {
			return false
		}
		if f.Protocol != model.TCP || isNotEstablished(f) {
			return true
		}
		open = append(open, hostflows.EndsOf(netip.AddrPortFrom(f.Client, f.ClientPort), netip.AddrPortFrom(f.VIP, f.VIPPort), netip.AddrPortFrom(f.ReplyTo, f.ReplyPort),
			netip.AddrPortFrom(f.Endpoint, f.EndpointPort), isDirect(f))...)
		return true
	})
	return open, err
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
