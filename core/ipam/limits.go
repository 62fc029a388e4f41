package ipam

import (
	"fmt"
	"net/netip"
)

// Limits bound what a tenant's LoadBalancers have together; nil bounds nothing. What they have already no limit takes away.
type Limits struct {
	// LoadBalancers is how many may have addresses, Addresses how many addresses they may have, each counted once.
	LoadBalancers *int32 `json:"loadBalancers,omitempty"`
	Addresses     *int32 `json:"addresses,omitempty"`
	// Ports is how many ports they may have.
	Ports *int32 `json:"ports,omitempty"`
}

// PortsOf is how many ports the holder has its addresses for.
func (a *Allocator) PortsOf(holder string) int { return len(a.claims[holder].Ports) }

// exceeds says which limit the grants would break. A holder that does not come to more than it had breaks none.
func (a *Allocator) exceeds(holder string, wish Wish, grants []Grant, before Holding) *Refusal {
	limits, others := wish.Limits, a.held[tenantOf(holder)]
	if n := int32(len(others)); limits.LoadBalancers != nil && len(before.Grants) == 0 && n >= *limits.LoadBalancers {
		return overLimit(wish.Tenant, "loadBalancers", *limits.LoadBalancers, fmt.Sprintf("%d LoadBalancers have addresses", n))
	}
	if limits.Addresses != nil {
		if refusal := exceedsAddresses(wish, addressesOf(others), grants, before.Grants); refusal != nil {
			return refusal
		}
	}
	if limits.Ports == nil || len(wish.Ports) <= len(before.Claim.Ports) && len(before.Grants) > 0 {
		return nil
	}
	if n := a.ports[tenantOf(holder)] + int32(len(wish.Ports)); n > *limits.Ports {
		refusal := overLimit(wish.Tenant, "ports", *limits.Ports, fmt.Sprintf("it would have %d ports", n))
		if len(before.Grants) > 0 {
			refusal.KeptClaim = &before.Claim
		}
		return refusal
	}
	return nil
}

func exceedsAddresses(wish Wish, distinct map[netip.Addr]bool, grants, before []Grant) *Refusal {
	limits := wish.Limits
	with := func(grants []Grant) int32 {
		n := int32(len(distinct))
		for _, g := range grants {
			if !distinct[g.Address] {
				n++
			}
		}
		return n
	}
	if n := with(grants); n > *limits.Addresses && n > with(before) {
		return overLimit(wish.Tenant, "addresses", *limits.Addresses, fmt.Sprintf("it would have %d addresses", n))
	}
	return nil
}

// addressesOf are the addresses that holders have.
func addressesOf(held map[string][]Grant) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, grants := range held {
		for _, g := range grants {
			out[g.Address] = true
		}
	}
	return out
}

// claim notes by which claim the holder has what it has.
func (a *Allocator) claim(holder string, c Claim) {
	tenant := tenantOf(holder)
	a.ports[tenant] += int32(len(c.Ports) - len(a.claims[holder].Ports))
	if a.ports[tenant] == 0 {
		delete(a.ports, tenant)
	}
	a.claims[holder] = c
}

func overLimit(tenant, limit string, is int32, would string) *Refusal {
	return &Refusal{Reason: LimitReached, Message: fmt.Sprintf("Tenant %s, spec.limits.%s is %d, and %s: delete one that is not needed, or have the management cluster's operator raise it", tenant, limit, is, would), final: true}
}

// Count is what a tenant's LoadBalancers have together.
type Count struct{ LoadBalancers, Addresses, Ports int32 }

// CountOf counts what the holders have whose names begin with the namespace.
func (a *Allocator) CountOf(namespace string) Count {
	held := a.held[namespace]
	return Count{int32(len(held)), int32(len(addressesOf(held))), a.ports[namespace]}
}
