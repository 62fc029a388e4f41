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

// Bereft is an AddressPool with addresses in use that would be without an answer if a gateway let go of them.
type Bereft struct {
	Pool      string
	Addresses []netip.Addr
	// Selector is by which labels the pool chooses gateways, empty if it chooses all.
	Selector string
	// Mute says of which chosen gateways nobody hears the addresses, though they work, and why.
	Mute []string
}

// BereftBy returns the pools that choose the gateway, and for whose addresses in use no other gateway answers that works.
func (h *Hub) BereftBy(gateway string) (out []Bereft) {
	chosen := h.selection(netip.Addr{}, &Trace{})
	for i := range h.LoadBalancers {
		for _, grant := range convert.Grants(&h.LoadBalancers[i]) {
			serves := chosen.ServingAddress(grant.Address)
			if serves != nil && !serves(gateway) {
				continue // it does not answer for it now, either
			}
			if others, mute := h.others(gateway, grant.Address, chosen); others == 0 {
				out = bereave(out, Bereft{grant.Pool, []netip.Addr{grant.Address}, h.selectorOf(grant.Pool), mute})
			}
		}
	}
	for i := range out {
		slices.SortFunc(out[i].Addresses, netip.Addr.Compare)
		out[i].Addresses = slices.Compact(out[i].Addresses) // LoadBalancers may share one
	}
	slices.SortFunc(out, func(a, b Bereft) int { return strings.Compare(a.Pool, b.Pool) })
	return out
}

// others counts the other gateways that work and are heard of the address, and says why those that work are not heard.
func (h *Hub) others(gateway string, address netip.Addr, chosen *selection.Selection) (answering int, mute []string) {
	serves := chosen.ServingAddress(address)
	for i := range h.Gateways {
		g := &h.Gateways[i]
		if g.Name == gateway || !h.Works(g) || serves != nil && !serves(g.Name) {
			continue
		}
		if why := convert.Silence(g, ipam.FamilyOf(address)); why != "" {
			mute = append(mute, "gateway "+g.Name+": "+why)
			continue
		}
		answering++
	}
	return answering, mute
}

// bereave adds one to the pools, which are named once each.
func bereave(all []Bereft, one Bereft) []Bereft {
	i := slices.IndexFunc(all, func(b Bereft) bool { return b.Pool == one.Pool })
	if i < 0 {
		return append(all, one)
	}
	all[i].Addresses = append(all[i].Addresses, one.Addresses...)
	for _, mute := range one.Mute {
		if !slices.Contains(all[i].Mute, mute) {
			all[i].Mute = append(all[i].Mute, mute)
		}
	}
	return all
}

func (h *Hub) selectorOf(pool string) string {
	for i := range h.Pools {
		if h.Pools[i].Name == pool && h.Pools[i].Spec.GatewaySelector != nil {
			return metav1.FormatLabelSelector(h.Pools[i].Spec.GatewaySelector)
		}
	}
	return ""
}

// String says which addresses they are, and why.
func (b Bereft) String() string {
	var addresses []string
	for _, a := range b.Addresses {
		addresses = append(addresses, a.String())
	}
	out := fmt.Sprintf("AddressPool %s (%s)", b.Pool, phrase.Few(addresses, ", "))
	if b.Selector != "" {
		out += " chooses gateways with " + b.Selector
	}
	if len(b.Mute) > 0 {
		out += "; nobody hears " + phrase.Few(b.Mute, "; ")
	}
	return out
}
