package inspect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/selection"
)

// UnservedPool is an AddressPool that no gateway announces if one gateway drains.
type UnservedPool struct {
	Pool string
	// Addresses are the addresses in use that no other gateway announces.
	Addresses []netip.Addr
	// Selector is the pool's label selector of gateways. It is empty if the pool chooses all gateways.
	Selector string
	// Silent names each working gateway that the pool chooses, but that announces the addresses to nobody, with the reason.
	Silent []string
}

// UnservedWithout returns the AddressPools with addresses in use that only this gateway announces.
func (h *Snapshot) UnservedWithout(gateway string) (out []UnservedPool) {
	chosen := h.selection(netip.Addr{}, &Trace{})
	for i := range h.LoadBalancers {
		for _, allocation := range convert.Allocations(&h.LoadBalancers[i]) {
			serves := chosen.ServingAddress(allocation.Address)
			if !serves.By(gateway) {
				continue // the gateway does not announce the address
			}
			if others, silent := h.otherGateways(gateway, allocation.Address, chosen); others == 0 {
				out = addUnserved(out, UnservedPool{allocation.Pool, []netip.Addr{allocation.Address}, h.selectorOf(allocation.Pool), silent})
			}
		}
	}
	for i := range out {
		slices.SortFunc(out[i].Addresses, netip.Addr.Compare)
		out[i].Addresses = slices.Compact(out[i].Addresses) // LoadBalancers may share an address
	}
	slices.SortFunc(out, func(a, b UnservedPool) int { return strings.Compare(a.Pool, b.Pool) })
	return out
}

// otherGateways counts the other working gateways that announce the address. silent names each working gateway that announces it to nobody, with the reason.
func (h *Snapshot) otherGateways(gateway string, address netip.Addr, chosen *selection.Selection) (answering int, silent []string) {
	serves := chosen.ServingAddress(address)
	for i := range h.Gateways {
		g := &h.Gateways[i]
		if g.Name == gateway || !h.Works(g) || !serves.By(g.Name) {
			continue
		}
		if why := convert.SilentReason(g, ipam.FamilyOf(address)); why != "" {
			silent = append(silent, "gateway "+g.Name+": "+why)
			continue
		}
		answering++
	}
	return answering, silent
}

// addUnserved adds a pool to the list, or its addresses if the pool is in the list already.
func addUnserved(all []UnservedPool, one UnservedPool) []UnservedPool {
	i := slices.IndexFunc(all, func(b UnservedPool) bool { return b.Pool == one.Pool })
	if i < 0 {
		return append(all, one)
	}
	all[i].Addresses = append(all[i].Addresses, one.Addresses...)
	for _, silent := range one.Silent {
		if !slices.Contains(all[i].Silent, silent) {
			all[i].Silent = append(all[i].Silent, silent)
		}
	}
	return all
}

func (h *Snapshot) selectorOf(pool string) string {
	for i := range h.Pools {
		if h.Pools[i].Name == pool && h.Pools[i].Spec.GatewaySelector != nil {
			return metav1.FormatLabelSelector(h.Pools[i].Spec.GatewaySelector)
		}
	}
	return ""
}

// String names the addresses, and the reason why no other gateway announces them.
func (b UnservedPool) String() string {
	var addresses []string
	for _, a := range b.Addresses {
		addresses = append(addresses, a.String())
	}
	out := fmt.Sprintf("AddressPool %s (%s)", b.Pool, phrase.Few(addresses, ", "))
	if b.Selector != "" {
		out += " chooses gateways with " + b.Selector
	}
	if len(b.Silent) > 0 {
		out += "; these announce to nobody: " + phrase.Few(b.Silent, "; ")
	}
	return out
}
