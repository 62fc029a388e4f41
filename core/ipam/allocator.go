package ipam

import (
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Allocator knows the owners of addresses. An owner is a LoadBalancer, named NAMESPACE/NAME. The caller has to give it every
// allocation on record (Adopt) before it asks for the first new one (Allocate). It is not safe for concurrent use.
type Allocator struct {
	pools    []Pool
	disabled map[string]Overlap
	// owners has several owners of an address that is shared. claims are the claims with which they got it.
	owners map[netip.Addr][]string
	claims map[string]Claim
	// ports is the number of ports in all claims of a tenant.
	ports map[string]int32
	// held has the addresses of owners, by tenant and owner.
	held    map[string]map[string][]Allocation
	cursors map[string]netip.Addr
	used    map[string]map[Family]int64
	// hosts are addresses in pools that belong to hosts, with names for the hosts. They are never assigned.
	hosts map[netip.Addr]string
	// reserved are the reservations that have not ended by now.
	reserved map[netip.Addr]Reservation
	now      time.Time
}

// NewAllocator returns an allocator without pools and allocations.
func NewAllocator() *Allocator {
	return &Allocator{owners: map[netip.Addr][]string{}, claims: map[string]Claim{}, ports: map[string]int32{}, held: map[string]map[string][]Allocation{}, cursors: map[string]netip.Addr{}, reserved: map[netip.Addr]Reservation{}}
}

// SetPools replaces the pools. A pool that overlaps a pool before it gives no address while it does. Owners keep their
// addresses, whether these are in a pool or not.
func (a *Allocator) SetPools(pools []Pool) []Overlap {
	overlaps := Overlaps(pools)
	a.pools, a.disabled = slices.Clone(pools), map[string]Overlap{}
	for _, o := range overlaps {
		a.disabled[o.Pool] = o
	}
	a.used = map[string]map[Family]int64{}
	for address := range a.owners {
		a.countUsed(address, 1)
	}
	return overlaps
}

// SetHosts replaces the addresses that are never assigned since they belong to hosts, with names for the hosts. An owner of one keeps it. Call
// SetHosts after SetPools: it keeps only the addresses that are in pools, since each allocation looks at all of them.
func (a *Allocator) SetHosts(hosts map[netip.Addr]string) {
	a.hosts = map[netip.Addr]string{}
	for address, host := range hosts {
		if slices.ContainsFunc(a.pools, func(p Pool) bool { return p.Contains(address) }) {
			a.hosts[address] = host
		}
	}
}

// Adopt adds allocations that are on record, with the owner's current claim. It returns an error for each address that another tenant has
// already, and does not add that one. LoadBalancers of one tenant that share an address on record keep it, whatever they claim: no change of
// one LoadBalancer costs another one its address.
func (a *Allocator) Adopt(owner string, claim Claim, allocations []Allocation) []error {
	var conflicts []error
	a.setClaim(owner, claim)
	for _, g := range allocations {
		otherTenants := slices.DeleteFunc(a.otherOwners(owner, g.Address), func(o string) bool { return tenantOf(o) == tenantOf(owner) })
		if len(otherTenants) > 0 {
			conflicts = append(conflicts, fmt.Errorf("address %s of %s is held by %s", g.Address, owner, otherTenants[0]))
			continue
		}
		if !slices.Contains(a.owners[g.Address], owner) {
			a.assign(owner, g)
		}
	}
	if len(a.AllocationsOf(owner)) == 0 {
		a.Release(owner)
	}
	return conflicts
}

// otherOwners returns the other owners of the address.
func (a *Allocator) otherOwners(owner string, address netip.Addr) (others []string) {
	for _, other := range a.owners[address] {
		if other != owner {
			others = append(others, other)
		}
	}
	return others
}

// tenantOf returns the namespace with which the name of an owner begins.
func tenantOf(owner string) string {
	tenant, _, _ := strings.Cut(owner, "/")
	return tenant
}

// AllocationsOf returns the addresses of the owner.
func (a *Allocator) AllocationsOf(owner string) []Allocation {
	return slices.Clone(a.held[tenantOf(owner)][owner])
}

// OwnerState has the addresses of an owner, and its claim.
type OwnerState struct {
	Allocations []Allocation
	Claim       Claim
}

// StateOf returns the addresses and the claim of the owner.
func (a *Allocator) StateOf(owner string) OwnerState {
	return OwnerState{a.AllocationsOf(owner), a.claims[owner]}
}

// Retain gives the owner its former addresses back, in addition to its current ones. It is for a write that failed, after which nobody knows which of
// them are on record. Call it directly after the Allocate or Release that took them away.
func (a *Allocator) Retain(owner string, former OwnerState) {
	current := a.StateOf(owner)
	for _, g := range former.Allocations {
		if !slices.Contains(a.owners[g.Address], owner) {
			a.assign(owner, g)
		}
	}
	claim := Claim{Ports: slices.Clone(former.Claim.Ports)}
	if len(current.Allocations) == 0 || current.Claim.Sharing == former.Claim.Sharing {
		claim.Sharing = former.Claim.Sharing
	}
	for _, p := range current.Claim.Ports {
		if !slices.Contains(claim.Ports, p) {
			claim.Ports = append(claim.Ports, p)
		}
	}
	a.setClaim(owner, claim)
}

// OwnersOf returns the owners of the address, in the order in which they got it.
func (a *Allocator) OwnersOf(address netip.Addr) []string { return slices.Clone(a.owners[address]) }

// Release frees all addresses of the owner, and returns them.
func (a *Allocator) Release(owner string) []Allocation {
	tenant := tenantOf(owner)
	allocations := a.held[tenant][owner]
	for _, g := range allocations {
		if a.owners[g.Address] = a.otherOwners(owner, g.Address); len(a.owners[g.Address]) == 0 {
			delete(a.owners, g.Address)
			a.countUsed(g.Address, -1)
		}
	}
	delete(a.held[tenant], owner)
	if len(a.held[tenant]) == 0 {
		delete(a.held, tenant)
	}
	a.setClaim(owner, Claim{})
	delete(a.claims, owner)
	return allocations
}

// Allocate fulfils a request and returns the addresses of the owner, in the order of the requested families. The owner keeps
// addresses that fit the request, even if their pool has changed or is gone. A refusal changes nothing.
func (a *Allocator) Allocate(owner string, request Request) ([]Allocation, *Refusal) {
	before, claim := a.AllocationsOf(owner), a.claims[owner]
	a.Release(owner)
	cursors := maps.Clone(a.cursors)
	allocations, refusal := a.choose(owner, request, OwnerState{before, claim})
	if refusal == nil {
		if refusal = a.checkLimits(owner, request, allocations, OwnerState{before, claim}); refusal != nil {
			a.cursors = cursors
		}
	}
	if refusal != nil {
		allocations = before
	} else {
		claim = request.Claim
	}
	if len(allocations) > 0 {
		a.setClaim(owner, claim)
	}
	for _, g := range allocations {
		a.assign(owner, g)
		delete(a.reserved, g.Address)
	}
	a.trimReservations(tenantOf(owner), request.Limits.Addresses)
	return allocations, refusal
}

func (a *Allocator) assign(owner string, g Allocation) {
	if len(a.owners[g.Address]) == 0 {
		a.countUsed(g.Address, 1)
	}
	a.owners[g.Address] = append(a.owners[g.Address], owner)
	tenant := tenantOf(owner)
	if a.held[tenant] == nil {
		a.held[tenant] = map[string][]Allocation{}
	}
	a.held[tenant][owner] = append(a.held[tenant][owner], g)
}

// countUsed adds to the number of used addresses of the pool that the address is in now.
func (a *Allocator) countUsed(address netip.Addr, change int64) {
	for _, pool := range a.pools {
		if _, off := a.disabled[pool.Name]; !off && pool.Contains(address) {
			if a.used[pool.Name] == nil {
				a.used[pool.Name] = map[Family]int64{}
			}
			a.used[pool.Name][FamilyOf(address)] += change
			return
		}
	}
}

// Usage is how many addresses of a pool are used and free.
type Usage struct {
	Used int64
	Free *big.Int
}

// hostsIn counts the pool's addresses of the family that belong to hosts and have no owner.
func (a *Allocator) hostsIn(poolName string, family Family) (n int64) {
	at := slices.IndexFunc(a.pools, func(p Pool) bool { return p.Name == poolName })
	if at < 0 {
		return 0
	}
	for address := range a.hosts {
		if FamilyOf(address) == family && len(a.owners[address]) == 0 && a.pools[at].Contains(address) {
			n++
		}
	}
	return n
}

// Usage counts the pool's addresses of the family.
func (a *Allocator) Usage(poolName string, family Family) Usage {
	free := new(big.Int)
	for _, pool := range a.pools {
		if pool.Name != poolName {
			continue
		}
		for _, r := range pool.Ranges {
			if FamilyOf(r.First) == family {
				free.Add(free, r.size())
			}
		}
	}
	used := a.used[poolName][family]
	return Usage{used, free.Sub(free, big.NewInt(used+a.hostsIn(poolName, family)))}
}
