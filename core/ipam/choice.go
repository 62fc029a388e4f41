package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/phrase"
)

// choose chooses an address for each requested family. The caller has released the owner's own addresses.
func (a *Allocator) choose(owner string, wish Wish, before Holding) ([]Grant, *Refusal) {
	families, optional := wish.families(before.Grants)
	if refusal := wish.contradiction(families); refusal != nil {
		return nil, refusal
	}
	wish.indexed = wish.Claim.index()
	var grants []Grant
	var first *Refusal
	for _, family := range families {
		grant, refusal := a.chooseOne(owner, wish, family, before)
		switch {
		case refusal == nil:
			grants = append(grants, grant)
		case first == nil:
			first = refusal
		}
		if refusal != nil && (refusal.final || !optional && !wish.wantsAnyFamily()) {
			return nil, refusal
		}
		if len(grants) > 0 && wish.wantsAnyFamily() {
			break
		}
	}
	if len(grants) == 0 {
		return nil, first
	}
	return grants, nil
}

// chooseOne chooses an address of the family.
func (a *Allocator) chooseOne(owner string, wish Wish, family Family, before Holding) (Grant, *Refusal) {
	for _, requested := range wish.Requested {
		if FamilyOf(requested) != family {
			continue
		}
		grant, refusal := a.requested(owner, wish, requested, before)
		if refusal != nil {
			refusal.final = true
		}
		return grant, refusal
	}
	for _, g := range before.Grants {
		if FamilyOf(g.Address) != family || wish.Pool != "" && wish.Pool != g.Pool {
			continue
		}
		if !a.canHave(owner, wish, g.Address, before) {
			refusal := a.refuseInUse(owner, g.Address, "the address "+g.Address.String()+", which it holds,")
			refusal.final = true
			return Grant{}, refusal
		}
		return g, nil
	}
	if g, ok := a.findShared(owner, wish, family); ok {
		return g, nil
	}
	return a.nextFree(tenantOf(owner), wish, family)
}

// canHave reports whether the owner can have the address: it has no other owner, or can be shared with all of them. An owner whose claim is
// unchanged keeps its address, so that no change of another LoadBalancer costs it the address.
func (a *Allocator) canHave(owner string, wish Wish, address netip.Addr, before Holding) bool {
	kept := wish.Claim.equal(before.Claim) && slices.ContainsFunc(before.Grants, func(g Grant) bool { return g.Address == address })
	return kept || !slices.ContainsFunc(a.owners[address], func(o string) bool {
		return o != owner && (tenantOf(o) != tenantOf(owner) || !wish.indexed.canShareWith(a.claims[o]))
	})
}

// findShared finds an address that the owner can share. If there are several, it is the address of the first owner by name: to choose by
// address would have the choice depend on what other tenants have.
func (a *Allocator) findShared(owner string, wish Wish, family Family) (found Grant, ok bool) {
	if wish.Sharing == "" {
		return Grant{}, false
	}
	for address := range addressesOf(a.held[tenantOf(owner)]) { // tenants do not share addresses
		if FamilyOf(address) != family || ok && !a.hasEarlierOwner(address, found.Address) || !a.canHave(owner, wish, address, Holding{}) {
			continue
		}
		for _, pool := range a.pools {
			if a.canAssign(pool, wish) && pool.Contains(address) {
				found, ok = Grant{address, pool.Name}, true
			}
		}
	}
	return found, ok
}

// hasEarlierOwner reports whether an owner of the address is before all owners of the other address, by name.
func (a *Allocator) hasEarlierOwner(address, other netip.Addr) bool {
	return cmp.Or(cmp.Compare(slices.Min(a.owners[address]), slices.Min(a.owners[other])), address.Compare(other)) < 0
}

// refuseInUse returns the refusal of an address that has another owner. It does not name an owner of another tenant.
func (a *Allocator) refuseInUse(owner string, address netip.Addr, what string) *Refusal {
	others := a.otherOwners(owner, address)
	if tenantOf(others[0]) != tenantOf(owner) {
		return &Refusal{Reason: AddressInUse, Message: what + " is held by another LoadBalancer; ask for another one or none"}
	}
	return &Refusal{Reason: AddressInUse, Message: fmt.Sprintf("%s is held by another LoadBalancer (%s); ask for another one or none, or give both the same sharing key and ports apart", what, phrase.Few(others, ", "))}
}

// canAssign reports whether the pool may give a new address for the request.
func (a *Allocator) canAssign(pool Pool, wish Wish) bool {
	_, off := a.disabled[pool.Name]
	return !off && !pool.Draining && !pool.Suspended && pool.Allows(wish.Tenant) && (wish.Pool == "" || wish.Pool == pool.Name)
}

func (a *Allocator) requested(owner string, wish Wish, address netip.Addr, before Holding) (Grant, *Refusal) {
	if !a.canHave(owner, wish, address, before) {
		return Grant{}, a.refuseInUse(owner, address, "requested address "+address.String())
	}
	for _, g := range before.Grants {
		if g.Address != address {
			continue
		}
		if wish.Pool != "" && wish.Pool != g.Pool {
			return Grant{}, &Refusal{Reason: ContradictoryWish, Message: fmt.Sprintf("requested address %s is of AddressPool %s, but the requested AddressPool is %s: ask for an address of that AddressPool, or for only one of the two",
				address, g.Pool, wish.Pool)}
		}
		return g, nil
	}
	if r, reserved := a.reservedForOther(tenantOf(owner), address); reserved {
		return Grant{}, &Refusal{Reason: AddressInUse, Message: fmt.Sprintf("requested address %s is reserved until %s for the tenant that had it; ask for another one or none, or wait",
			address, r.Until.UTC().Format(time.RFC3339))}
	}
	for _, pool := range a.pools {
		if !a.canAssign(pool, wish) || !pool.Contains(address) {
			continue
		}
		if host, is := a.hosts[address]; is {
			return Grant{}, &Refusal{Reason: AddressNotAvailable, Message: fmt.Sprintf("requested address %s is an address of %s; ask for another one or none", address, host)}
		}
		return Grant{address, pool.Name}, nil
	}
	return Grant{}, &Refusal{Reason: AddressNotAvailable, Message: fmt.Sprintf("requested address %s is in no address pool that gives addresses to tenant %s; ask for one of %s, or none",
		address, wish.Tenant, a.describePools(wish))}
}

func (a *Allocator) describePools(wish Wish) string {
	var names []string
	for _, pool := range a.pools {
		if a.canAssign(pool, wish) {
			names = append(names, pool.Name)
		}
	}
	if len(names) == 0 {
		return "no pool at all"
	}
	return "the pools " + phrase.Few(names, ", ")
}

// nextFree takes the next free address of the first pool that has one. A request that names a pool also gets addresses of a pool without AutoAssign.
func (a *Allocator) nextFree(namespace string, wish Wish, family Family) (Grant, *Refusal) {
	var full []string
	byPriority := slices.Clone(a.pools)
	slices.SortStableFunc(byPriority, func(x, y Pool) int { return cmp.Compare(y.Priority, x.Priority) })
	for _, pool := range byPriority {
		if !a.canAssign(pool, wish) || !pool.AutoAssign && wish.Pool == "" || !pool.hasFamily(family) {
			continue
		}
		if address, ok := a.findFree(namespace, pool, family); ok {
			return Grant{address, pool.Name}, nil
		}
		full = append(full, pool.Name)
	}
	if len(full) > 0 {
		return Grant{}, &Refusal{Reason: PoolExhausted, Message: fmt.Sprintf("no free %s address in %s: delete a LoadBalancer or add addresses to an AddressPool",
			family, phrase.Few(full, ", "))}
	}
	if wish.Pool != "" {
		return Grant{}, &Refusal{Reason: NoMatchingPool, Message: fmt.Sprintf("there is no AddressPool %s that gives %s addresses to tenant %s: name another one or none",
			wish.Pool, family, wish.Tenant)}
	}
	return Grant{}, &Refusal{Reason: NoMatchingPool, Message: fmt.Sprintf("no AddressPool with autoAssign gives %s addresses to tenant %s: create one, or allow the tenant in spec.tenants of one",
		family, wish.Tenant)}
}

// findFree goes on from the address that it found last, so that a freed address is used again as late as possible: clients
// and neighbour caches may still know its former owner.
func (a *Allocator) findFree(namespace string, pool Pool, family Family) (netip.Addr, bool) {
	usage := a.Usage(pool.Name, family)
	if usage.Free.Sign() <= 0 {
		return netip.Addr{}, false
	}
	key := pool.Name + "/" + family.String()
	at, ok := pool.nextAddress(a.cursors[key], family)
	// Not free are the used addresses, the reserved ones and those of hosts. One more step than there are of these finds a free address.
	for range a.used[pool.Name][family] + int64(len(a.reserved)+len(a.hosts)) + 1 {
		if !ok {
			return netip.Addr{}, false
		}
		a.cursors[key] = at
		_, reserved := a.reservedForOther(namespace, at)
		_, host := a.hosts[at]
		if _, taken := a.owners[at]; !taken && !reserved && !host {
			return at, true
		}
		at, ok = pool.nextAddress(at, family)
	}
	return netip.Addr{}, false
}
