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
func (a *Allocator) choose(owner string, request Request, before OwnerState) ([]Allocation, *Refusal) {
	families, optional := request.families(before.Allocations)
	if refusal := request.contradiction(families); refusal != nil {
		return nil, refusal
	}
	request.indexed = request.Claim.index()
	var allocations []Allocation
	var first *Refusal
	for _, family := range families {
		allocation, refusal := a.chooseOne(owner, request, family, before)
		switch {
		case refusal == nil:
			allocations = append(allocations, allocation)
		case first == nil:
			first = refusal
		}
		if refusal != nil && (refusal.final || !optional && !request.wantsAnyFamily()) {
			return nil, refusal
		}
		if len(allocations) > 0 && request.wantsAnyFamily() {
			break
		}
	}
	if len(allocations) == 0 {
		return nil, first
	}
	return allocations, nil
}

// chooseOne chooses an address of the family.
func (a *Allocator) chooseOne(owner string, request Request, family Family, before OwnerState) (Allocation, *Refusal) {
	for _, requested := range request.Requested {
		if FamilyOf(requested) != family {
			continue
		}
		allocation, refusal := a.requested(owner, request, requested, before)
		if refusal != nil {
			refusal.final = true
		}
		return allocation, refusal
	}
	for _, g := range before.Allocations {
		if FamilyOf(g.Address) != family || request.Pool != "" && request.Pool != g.Pool {
			continue
		}
		if !a.canHave(owner, request, g.Address, before) {
			refusal := a.refuseInUse(owner, g.Address, "the address "+g.Address.String()+", which it holds,")
			refusal.final = true
			return Allocation{}, refusal
		}
		return g, nil
	}
	if g, ok := a.findShared(owner, request, family); ok {
		return g, nil
	}
	return a.nextFree(tenantOf(owner), request, family)
}

// canHave reports whether the owner can have the address: it has no other owner, or can be shared with all of them. An owner whose claim is
// unchanged keeps its address, so that no change of another LoadBalancer costs it the address.
func (a *Allocator) canHave(owner string, request Request, address netip.Addr, before OwnerState) bool {
	kept := request.Claim.equal(before.Claim) && slices.ContainsFunc(before.Allocations, func(g Allocation) bool { return g.Address == address })
	return kept || !slices.ContainsFunc(a.owners[address], func(o string) bool {
		return o != owner && (tenantOf(o) != tenantOf(owner) || !request.indexed.canShareWith(a.claims[o]))
	})
}

// findShared finds an address that the owner can share. If there are several, it is the address of the first owner by name: to choose by
// address would have the choice depend on what other tenants have.
func (a *Allocator) findShared(owner string, request Request, family Family) (found Allocation, ok bool) {
	if request.Sharing == "" {
		return Allocation{}, false
	}
	for address := range addressesOf(a.held[tenantOf(owner)]) { // tenants do not share addresses
		if FamilyOf(address) != family || ok && !a.hasEarlierOwner(address, found.Address) || !a.canHave(owner, request, address, OwnerState{}) {
			continue
		}
		for _, pool := range a.pools {
			if a.canAssign(pool, request) && pool.Contains(address) {
				found, ok = Allocation{address, pool.Name}, true
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
func (a *Allocator) canAssign(pool Pool, request Request) bool {
	_, off := a.disabled[pool.Name]
	return !off && !pool.Draining && !pool.Suspended && pool.Allows(request.Tenant) && (request.Pool == "" || request.Pool == pool.Name)
}

func (a *Allocator) requested(owner string, request Request, address netip.Addr, before OwnerState) (Allocation, *Refusal) {
	if !a.canHave(owner, request, address, before) {
		return Allocation{}, a.refuseInUse(owner, address, "requested address "+address.String())
	}
	for _, g := range before.Allocations {
		if g.Address != address {
			continue
		}
		if request.Pool != "" && request.Pool != g.Pool {
			return Allocation{}, &Refusal{Reason: ContradictoryRequest, Message: fmt.Sprintf("requested address %s is of AddressPool %s, but the requested AddressPool is %s: ask for an address of that AddressPool, or for only one of the two",
				address, g.Pool, request.Pool)}
		}
		return g, nil
	}
	if r, reserved := a.reservedForOther(tenantOf(owner), address); reserved {
		return Allocation{}, &Refusal{Reason: AddressInUse, Message: fmt.Sprintf("requested address %s is reserved until %s for the tenant that had it; ask for another one or none, or wait",
			address, r.Until.UTC().Format(time.RFC3339))}
	}
	for _, pool := range a.pools {
		if !a.canAssign(pool, request) || !pool.Contains(address) {
			continue
		}
		if host, is := a.hosts[address]; is {
			return Allocation{}, &Refusal{Reason: AddressNotAvailable, Message: fmt.Sprintf("requested address %s is an address of %s; ask for another one or none", address, host)}
		}
		return Allocation{address, pool.Name}, nil
	}
	return Allocation{}, &Refusal{Reason: AddressNotAvailable, Message: fmt.Sprintf("requested address %s is in no address pool that gives addresses to tenant %s; ask for one of %s, or none",
		address, request.Tenant, a.describePools(request))}
}

func (a *Allocator) describePools(request Request) string {
	var names []string
	for _, pool := range a.pools {
		if a.canAssign(pool, request) {
			names = append(names, pool.Name)
		}
	}
	if len(names) == 0 {
		return "no pool at all"
	}
	return "the pools " + phrase.Few(names, ", ")
}

// nextFree takes the next free address of the first pool that has one. A request that names a pool also gets addresses of a pool without AutoAssign.
func (a *Allocator) nextFree(namespace string, request Request, family Family) (Allocation, *Refusal) {
	var full []string
	byPriority := slices.Clone(a.pools)
	slices.SortStableFunc(byPriority, func(x, y Pool) int { return cmp.Compare(y.Priority, x.Priority) })
	for _, pool := range byPriority {
		if !a.canAssign(pool, request) || !pool.AutoAssign && request.Pool == "" || !pool.hasFamily(family) {
			continue
		}
		if address, ok := a.findFree(namespace, pool, family); ok {
			return Allocation{address, pool.Name}, nil
		}
		full = append(full, pool.Name)
	}
	if len(full) > 0 {
		return Allocation{}, &Refusal{Reason: PoolExhausted, Message: fmt.Sprintf("no free %s address in %s: delete a LoadBalancer or add addresses to an AddressPool",
			family, phrase.Few(full, ", "))}
	}
	if request.Pool != "" {
		return Allocation{}, &Refusal{Reason: NoMatchingPool, Message: fmt.Sprintf("there is no AddressPool %s that gives %s addresses to tenant %s: name another one or none",
			request.Pool, family, request.Tenant)}
	}
	return Allocation{}, &Refusal{Reason: NoMatchingPool, Message: fmt.Sprintf("no AddressPool with autoAssign gives %s addresses to tenant %s: create one, or allow the tenant in spec.tenants of one",
		family, request.Tenant)}
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
