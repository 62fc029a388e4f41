package ipam

import (
	"fmt"
	"net/netip"
)

// Limits bound what a tenant's LoadBalancers have together; nil is no limit. No limit takes away what they have already.
type Limits struct {
	// LoadBalancers is how many may have addresses. Addresses is how many addresses they may have; a shared address counts once.
	LoadBalancers *int32 `json:"loadBalancers,omitempty"`
	Addresses     *int32 `json:"addresses,omitempty"`
	// Ports is how many ports they may have.
	Ports *int32 `json:"ports,omitempty"`
}

// PortsOf returns the number of ports in the claim of the owner.
func (a *Allocator) PortsOf(owner string) int { return len(a.claims[owner].Ports) }

// checkLimits returns a refusal if the allocations would exceed a limit. No limit refuses allocations that are no more than before.
func (a *Allocator) checkLimits(owner string, request Request, allocations []Allocation, before OwnerState) *Refusal {
	limits, others := request.Limits, a.held[tenantOf(owner)]
	if n := int32(len(others)); limits.LoadBalancers != nil && len(before.Allocations) == 0 && n >= *limits.LoadBalancers {
		return overLimit(request.Tenant, "loadBalancers", *limits.LoadBalancers, fmt.Sprintf("%d LoadBalancers have addresses", n))
	}
	if limits.Addresses != nil {
		if refusal := checkAddressLimit(request, addressesOf(others), allocations, before.Allocations); refusal != nil {
			return refusal
		}
	}
	if limits.Ports == nil || len(request.Ports) <= len(before.Claim.Ports) && len(before.Allocations) > 0 {
		return nil
	}
	if n := a.ports[tenantOf(owner)] + int32(len(request.Ports)); n > *limits.Ports {
		refusal := overLimit(request.Tenant, "ports", *limits.Ports, fmt.Sprintf("it would have %d ports", n))
		if len(before.Allocations) > 0 {
			refusal.KeptClaim = &before.Claim
		}
		return refusal
	}
	return nil
}

func checkAddressLimit(request Request, distinct map[netip.Addr]bool, allocations, before []Allocation) *Refusal {
	limits := request.Limits
	with := func(allocations []Allocation) int32 {
		n := int32(len(distinct))
		for _, g := range allocations {
			if !distinct[g.Address] {
				n++
			}
		}
		return n
	}
	if n := with(allocations); n > *limits.Addresses && n > with(before) {
		return overLimit(request.Tenant, "addresses", *limits.Addresses, fmt.Sprintf("it would have %d addresses", n))
	}
	return nil
}

// addressesOf returns the addresses of all owners.
func addressesOf(held map[string][]Allocation) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, allocations := range held {
		for _, g := range allocations {
			out[g.Address] = true
		}
	}
	return out
}

// setClaim replaces the claim of the owner.
func (a *Allocator) setClaim(owner string, c Claim) {
	tenant := tenantOf(owner)
	a.ports[tenant] += int32(len(c.Ports) - len(a.claims[owner].Ports))
	if a.ports[tenant] == 0 {
		delete(a.ports, tenant)
	}
	a.claims[owner] = c
}

func overLimit(tenant, limit string, value int32, excess string) *Refusal {
	return &Refusal{Reason: LimitReached, Message: fmt.Sprintf("Tenant %s, spec.limits.%s is %d, and %s: delete one that is not needed, or have the management cluster's operator raise it", tenant, limit, value, excess), final: true}
}

// Count counts what a tenant's LoadBalancers have together.
type Count struct{ LoadBalancers, Addresses, Ports int32 }

// CountOf counts what the owners in the tenant's namespace have.
func (a *Allocator) CountOf(namespace string) Count {
	held := a.held[namespace]
	return Count{int32(len(held)), int32(len(addressesOf(held))), a.ports[namespace]}
}
