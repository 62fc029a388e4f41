package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/phrase"
)

// decide chooses an address for each wished family while none of the holder's own is taken.
func (a *Allocator) decide(holder string, wish Wish, before Holding) ([]Grant, *Refusal) {
	families, optional := wish.families(before.Grants)
	if refusal := wish.contradiction(families); refusal != nil {
		return nil, refusal
	}
	wish.asked = wish.Claim.ask()
	var grants []Grant
	var first *Refusal
	for _, family := range families {
		grant, refusal := a.one(holder, wish, family, before)
		switch {
		case refusal == nil:
			grants = append(grants, grant)
		case first == nil:
			first = refusal
		}
		if refusal != nil && (refusal.final || !optional && !wish.anyFamily()) {
			return nil, refusal
		}
		if len(grants) > 0 && wish.anyFamily() {
			break
		}
	}
	if len(grants) == 0 {
		return nil, first
	}
	return grants, nil
}

// one finds an address of the family.
func (a *Allocator) one(holder string, wish Wish, family Family, before Holding) (Grant, *Refusal) {
	for _, requested := range wish.Requested {
		if FamilyOf(requested) != family {
			continue
		}
		grant, refusal := a.requested(holder, wish, requested, before)
		if refusal != nil {
			refusal.final = true
		}
		return grant, refusal
	}
	for _, g := range before.Grants {
		if FamilyOf(g.Address) != family || wish.Pool != "" && wish.Pool != g.Pool {
			continue
		}
		if !a.may(holder, wish, g.Address, before) {
			refusal := a.inUse(holder, g.Address, "the address "+g.Address.String()+", which it holds,")
			refusal.final = true
			return Grant{}, refusal
		}
		return g, nil
	}
	if g, ok := a.shared(holder, wish, family); ok {
		return g, nil
	}
	return a.next(tenantOf(holder), wish, family)
}

// may tells whether the wish may have the address: nobody else has it, or all that do tolerate that. By the claim that it had it before
// it keeps it, so that no other one's change costs it anything.
func (a *Allocator) may(holder string, wish Wish, address netip.Addr, before Holding) bool {
	kept := wish.Claim.equal(before.Claim) && slices.ContainsFunc(before.Grants, func(g Grant) bool { return g.Address == address })
	return kept || !slices.ContainsFunc(a.holders[address], func(o string) bool {
		return o != holder && (tenantOf(o) != tenantOf(holder) || !wish.asked.tolerates(a.claims[o]))
	})
}

// shared finds an address that others hold who share it: that of the first one of them by name. Which address they have depends on other tenants.
func (a *Allocator) shared(holder string, wish Wish, family Family) (found Grant, ok bool) {
	if wish.Sharing == "" {
		return Grant{}, false
	}
	for address := range addressesOf(a.held[tenantOf(holder)]) { // no other tenant shares one with it
		if FamilyOf(address) != family || ok && !a.sooner(address, found.Address) || !a.may(holder, wish, address, Holding{}) {
			continue
		}
		for _, pool := range a.pools {
			if a.gives(pool, wish) && pool.Contains(address) {
				found, ok = Grant{address, pool.Name}, true
			}
		}
	}
	return found, ok
}

// sooner tells whether the address has a holder before all of the other one's, by their names.
func (a *Allocator) sooner(address, other netip.Addr) bool {
	return cmp.Or(cmp.Compare(slices.Min(a.holders[address]), slices.Min(a.holders[other])), address.Compare(other)) < 0
}

// inUse says who has an address that cannot be had besides.
func (a *Allocator) inUse(holder string, address netip.Addr, what string) *Refusal {
	others := a.others(holder, address)
	if tenantOf(others[0]) != tenantOf(holder) {
		return &Refusal{Reason: AddressInUse, Message: what + " is held by another LoadBalancer; ask for another one or none"}
	}
	return &Refusal{Reason: AddressInUse, Message: fmt.Sprintf("%s is held by another LoadBalancer (%s); ask for another one or none, or give both the same sharing key and ports apart", what, phrase.Few(others, ", "))}
}

// gives reports whether new addresses of the pool may go to who wishes so.
func (a *Allocator) gives(pool Pool, wish Wish) bool {
	_, off := a.disabled[pool.Name]
	return !off && !pool.Draining && !pool.Suspended && pool.Allows(wish.Tenant) && (wish.Pool == "" || wish.Pool == pool.Name)
}

func (a *Allocator) requested(holder string, wish Wish, address netip.Addr, before Holding) (Grant, *Refusal) {
	if !a.may(holder, wish, address, before) {
		return Grant{}, a.inUse(holder, address, "requested address "+address.String())
	}
	for _, g := range before.Grants {
		if g.Address != address {
			continue
		}
		if wish.Pool != "" && wish.Pool != g.Pool {
			return Grant{}, &Refusal{Reason: ContradictoryWish, Message: fmt.Sprintf("requested address %s is of AddressPool %s, and AddressPool %s is asked for: ask for an address of that, or for one of both",
				address, g.Pool, wish.Pool)}
		}
		return g, nil
	}
	if r, kept := a.keptFor(tenantOf(holder), address); kept {
		return Grant{}, &Refusal{Reason: AddressInUse, Message: fmt.Sprintf("requested address %s is kept for the tenant that had it until %s; ask for another one or none, or wait",
			address, r.Until.UTC().Format(time.RFC3339))}
	}
	for _, pool := range a.pools {
		if !a.gives(pool, wish) || !pool.Contains(address) {
			continue
		}
		if host, is := a.hosts[address]; is {
			return Grant{}, &Refusal{Reason: AddressNotAvailable, Message: fmt.Sprintf("requested address %s is an address of %s; ask for another one or none", address, host)}
		}
		return Grant{address, pool.Name}, nil
	}
	return Grant{}, &Refusal{Reason: AddressNotAvailable, Message: fmt.Sprintf("requested address %s is in no address pool that gives addresses to tenant %s; ask for one of %s, or none",
		address, wish.Tenant, a.describe(wish))}
}

func (a *Allocator) describe(wish Wish) string {
	var names []string
	for _, pool := range a.pools {
		if a.gives(pool, wish) {
			names = append(names, pool.Name)
		}
	}
	if len(names) == 0 {
		return "no pool at all"
	}
	return "the pools " + phrase.Few(names, ", ")
}

// next takes the next free address of the first pool that has one. Whoever names a pool need not be given its addresses unasked.
func (a *Allocator) next(namespace string, wish Wish, family Family) (Grant, *Refusal) {
	var full []string
	byPriority := slices.Clone(a.pools)
	slices.SortStableFunc(byPriority, func(x, y Pool) int { return cmp.Compare(y.Priority, x.Priority) })
	for _, pool := range byPriority {
		if !a.gives(pool, wish) || !pool.AutoAssign && wish.Pool == "" || !pool.has(family) {
			continue
		}
		if address, ok := a.free(namespace, pool, family); ok {
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

// free walks on from where the last walk ended, so that a freed address rests as long as possible before it is dealt
// again: clients and neighbour caches may still know its former owner.
func (a *Allocator) free(namespace string, pool Pool, family Family) (netip.Addr, bool) {
	usage := a.Usage(pool.Name, family)
	if usage.Free.Sign() <= 0 {
		return netip.Addr{}, false
	}
	key := pool.Name + "/" + family.String()
	at, ok := pool.after(a.cursors[key], family)
	// As many addresses are held as used says, some are kept, and some are hosts', so one more step than that finds a free one.
	for range a.used[pool.Name][family] + int64(len(a.reserved)+len(a.hosts)) + 1 {
		if !ok {
			return netip.Addr{}, false
		}
		a.cursors[key] = at
		_, kept := a.keptFor(namespace, at)
		_, host := a.hosts[at]
		if _, taken := a.holders[at]; !taken && !kept && !host {
			return at, true
		}
		at, ok = pool.after(at, family)
	}
	return netip.Addr{}, false
}
