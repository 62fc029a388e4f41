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

// Allocator remembers who holds which address. Its owner feeds it every allocation that is on record (Adopt) before it
// asks for the first new one (Allocate). It is not safe for concurrent use.
type Allocator struct {
	pools    []Pool
	disabled map[string]Overlap
	// holders of an address are more than one where it is shared; claims are those by which they have got it.
	holders map[netip.Addr][]string
	claims  map[string]Claim
	// ports are how many there are in a tenant's claims.
	ports map[string]int32
	// held is what holders have, by their tenant and name.
	held    map[string]map[string][]Grant
	cursors map[string]netip.Addr
	used    map[string]map[Family]int64
	// hosts are addresses in pools that hosts have, and what each host is called. They are never given.
	hosts map[netip.Addr]string
	// reserved are kept for tenants as of now.
	reserved map[netip.Addr]Reservation
	now      time.Time
}

// NewAllocator returns an allocator without pools, in which no address is held.
func NewAllocator() *Allocator {
	return &Allocator{holders: map[netip.Addr][]string{}, claims: map[string]Claim{}, ports: map[string]int32{}, held: map[string]map[string][]Grant{}, cursors: map[string]netip.Addr{}, reserved: map[netip.Addr]Reservation{}}
}

// SetPools replaces the pools. A pool that overlaps one before it gives no address until that ends. Addresses that are
// held stay with their holders, in a pool or not.
func (a *Allocator) SetPools(pools []Pool) []Overlap {
	overlaps := Overlaps(pools)
	a.pools, a.disabled = slices.Clone(pools), map[string]Overlap{}
	for _, o := range overlaps {
		a.disabled[o.Pool] = o
	}
	a.used = map[string]map[Family]int64{}
	for address := range a.holders {
		a.count(address, 1)
	}
	return overlaps
}

// SetHosts replaces the addresses that are never given, since a host has them, with what each host is called. A holder of one keeps it. SetHosts comes
// after SetPools: each allocation looks at the hosts' addresses, and the pools have few of these.
func (a *Allocator) SetHosts(hosts map[netip.Addr]string) {
	a.hosts = map[netip.Addr]string{}
	for address, host := range hosts {
		if slices.ContainsFunc(a.pools, func(p Pool) bool { return p.Contains(address) }) {
			a.hosts[address] = host
		}
	}
}

// Adopt records allocations that stand on record, with the claim that the holder makes now. It reports each address that another tenant
// holds already; that one is not recorded. What LoadBalancers of one tenant have together on record they keep, whatever they claim: no
// change of one costs another one its address.
func (a *Allocator) Adopt(holder string, claim Claim, grants []Grant) []error {
	var conflicts []error
	a.claim(holder, claim)
	for _, g := range grants {
		strangers := slices.DeleteFunc(a.others(holder, g.Address), func(o string) bool { return tenantOf(o) == tenantOf(holder) })
		if len(strangers) > 0 {
			conflicts = append(conflicts, fmt.Errorf("address %s of %s is held by %s", g.Address, holder, strangers[0]))
			continue
		}
		if !slices.Contains(a.holders[g.Address], holder) {
			a.take(holder, g)
		}
	}
	if len(a.Held(holder)) == 0 {
		a.Release(holder)
	}
	return conflicts
}

// others are those that hold the address besides.
func (a *Allocator) others(holder string, address netip.Addr) (others []string) {
	for _, h := range a.holders[address] {
		if h != holder {
			others = append(others, h)
		}
	}
	return others
}

// tenantOf is what a holder's name begins with: its namespace.
func tenantOf(holder string) string {
	tenant, _, _ := strings.Cut(holder, "/")
	return tenant
}

// Held returns what the holder has.
func (a *Allocator) Held(holder string) []Grant {
	return slices.Clone(a.held[tenantOf(holder)][holder])
}

// Holding is what a holder has, and by what claim.
type Holding struct {
	Grants []Grant
	Claim  Claim
}

// HoldingOf returns what the holder has.
func (a *Allocator) HoldingOf(holder string) Holding {
	return Holding{a.Held(holder), a.claims[holder]}
}

// Retain has the holder hold what it had until now, besides what it was given instead, as long as nobody knows which of them is on record. It
// comes right after the Allocate or Release that took that away.
func (a *Allocator) Retain(holder string, was Holding) {
	is := a.HoldingOf(holder)
	for _, g := range was.Grants {
		if !slices.Contains(a.holders[g.Address], holder) {
			a.take(holder, g)
		}
	}
	claim := Claim{Ports: slices.Clone(was.Claim.Ports)}
	if len(is.Grants) == 0 || is.Claim.Sharing == was.Claim.Sharing {
		claim.Sharing = was.Claim.Sharing
	}
	for _, p := range is.Claim.Ports {
		if !slices.Contains(claim.Ports, p) {
			claim.Ports = append(claim.Ports, p)
		}
	}
	a.claim(holder, claim)
}

// Holders returns who have the address, in the order in which they have got it.
func (a *Allocator) Holders(address netip.Addr) []string { return slices.Clone(a.holders[address]) }

// Release frees all that the holder has, and returns it.
func (a *Allocator) Release(holder string) []Grant {
	tenant := tenantOf(holder)
	grants := a.held[tenant][holder]
	for _, g := range grants {
		if a.holders[g.Address] = a.others(holder, g.Address); len(a.holders[g.Address]) == 0 {
			delete(a.holders, g.Address)
			a.count(g.Address, -1)
		}
	}
	delete(a.held[tenant], holder)
	if len(a.held[tenant]) == 0 {
		delete(a.held, tenant)
	}
	a.claim(holder, Claim{})
	delete(a.claims, holder)
	return grants
}

// Allocate returns what the holder has once the wish is fulfilled, in the order of the wished families. What is held
// already and fits the wish is kept, whatever has become of its pool. On a refusal nothing changes.
func (a *Allocator) Allocate(holder string, wish Wish) ([]Grant, *Refusal) {
	before, claim := a.Held(holder), a.claims[holder]
	a.Release(holder)
	cursors := maps.Clone(a.cursors)
	grants, refusal := a.decide(holder, wish, Holding{before, claim})
	if refusal == nil {
		if refusal = a.exceeds(holder, wish, grants, Holding{before, claim}); refusal != nil {
			a.cursors = cursors
		}
	}
	if refusal != nil {
		grants = before
	} else {
		claim = wish.Claim
	}
	if len(grants) > 0 {
		a.claim(holder, claim)
	}
	for _, g := range grants {
		a.take(holder, g)
		delete(a.reserved, g.Address)
	}
	a.giveUp(tenantOf(holder), wish.Limits.Addresses)
	return grants, refusal
}

func (a *Allocator) take(holder string, g Grant) {
	if len(a.holders[g.Address]) == 0 {
		a.count(g.Address, 1)
	}
	a.holders[g.Address] = append(a.holders[g.Address], holder)
	tenant := tenantOf(holder)
	if a.held[tenant] == nil {
		a.held[tenant] = map[string][]Grant{}
	}
	a.held[tenant][holder] = append(a.held[tenant][holder], g)
}

// count keeps the number of held addresses by the pool that they lie in now.
func (a *Allocator) count(address netip.Addr, change int64) {
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

// Usage is how many addresses of a pool are held and free.
type Usage struct {
	Used int64
	Free *big.Int
}

// hostsIn counts the pool's addresses of the family that hosts have and no holder has.
func (a *Allocator) hostsIn(poolName string, family Family) (n int64) {
	at := slices.IndexFunc(a.pools, func(p Pool) bool { return p.Name == poolName })
	if at < 0 {
		return 0
	}
	for address := range a.hosts {
		if FamilyOf(address) == family && len(a.holders[address]) == 0 && a.pools[at].Contains(address) {
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
