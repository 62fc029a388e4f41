package ipam

import (
	"cmp"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
)

// Family is an address family.
type Family uint8

// The families, 0 being none in particular.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns IPv4 or IPv6.
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// MarshalText writes IPv4 or IPv6.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads IPv4 or IPv6.
func (f *Family) UnmarshalText(text []byte) error {
	for _, family := range []Family{IPv4, IPv6} {
		if string(text) == family.String() {
			*f = family
			return nil
		}
	}
	return fmt.Errorf("family %q is neither IPv4 nor IPv6", text)
}

// FamilyOf returns the address's family.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Policy says how many families are wanted, as Service.spec.ipFamilyPolicy does.
type Policy string

// The policies; the empty one is SingleStack.
const (
	SingleStack      Policy = "SingleStack"
	PreferDualStack  Policy = "PreferDualStack"
	RequireDualStack Policy = "RequireDualStack"
)

// Wish is what one LoadBalancer asks for.
type Wish struct {
	Tenant string
	// Families in order of preference; empty means IPv4, or else IPv6.
	Families []Family
	Policy   Policy
	// Requested addresses, at most one of each family.
	Requested []netip.Addr
	// Pool that the addresses have to be of; empty means any.
	Pool string
}

// Grant is an address and the pool that it came from.
type Grant struct {
	Address netip.Addr
	Pool    string
}

// Refusal says why a wish is not granted. It is an error.
type Refusal struct {
	// Reason is a stable CamelCase word.
	Reason string
	// Message names what fails and the fix.
	Message string
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }

// Reasons of a refusal.
const (
	NoMatchingPool      = "NoMatchingPool"
	PoolExhausted       = "PoolExhausted"
	AddressInUse        = "AddressInUse"
	AddressNotAvailable = "AddressNotAvailable"
)

// Allocator remembers who holds which address. Its owner feeds it every allocation that is on record (Adopt) before it
// asks for the first new one (Allocate). It is not safe for concurrent use.
type Allocator struct {
	pools    []Pool
	disabled map[string]Overlap
	holders  map[netip.Addr]string
	held     map[string][]Grant
	cursors  map[string]netip.Addr
	used     map[string]map[Family]int64
}

// NewAllocator returns an allocator without pools, in which no address is held.
func NewAllocator() *Allocator {
	return &Allocator{holders: map[netip.Addr]string{}, held: map[string][]Grant{}, cursors: map[string]netip.Addr{}}
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

// Adopt records allocations that stand on record. It reports each address that somebody else holds already; that one is
// not recorded.
func (a *Allocator) Adopt(holder string, grants []Grant) []error {
	var conflicts []error
	for _, g := range grants {
		switch other, taken := a.holders[g.Address]; {
		case taken && other != holder:
			conflicts = append(conflicts, fmt.Errorf("address %s of %s is held by %s", g.Address, holder, other))
		case !taken:
			a.take(holder, g)
		}
	}
	return conflicts
}

// Held returns what the holder has.
func (a *Allocator) Held(holder string) []Grant { return slices.Clone(a.held[holder]) }

// Holder returns who has the address.
func (a *Allocator) Holder(address netip.Addr) (string, bool) {
	holder, ok := a.holders[address]
	return holder, ok
}

// Release frees all that the holder has, and returns it.
func (a *Allocator) Release(holder string) []Grant {
	grants := a.held[holder]
	for _, g := range grants {
		delete(a.holders, g.Address)
		a.count(g.Address, -1)
	}
	delete(a.held, holder)
	return grants
}

// Allocate returns what the holder has once the wish is fulfilled, in the order of the wished families. What is held
// already and fits the wish is kept, whatever has become of its pool. On a refusal nothing changes.
func (a *Allocator) Allocate(holder string, wish Wish) ([]Grant, *Refusal) {
	before := a.Held(holder)
	a.Release(holder)
	grants, refusal := a.decide(holder, wish, before)
	if refusal != nil {
		grants = before
	}
	for _, g := range grants {
		a.take(holder, g)
	}
	return grants, refusal
}

// decide chooses an address for each wished family while none of the holder's own is taken.
func (a *Allocator) decide(holder string, wish Wish, before []Grant) ([]Grant, *Refusal) {
	families, optional := wish.families(before)
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
		if refusal != nil && !optional && !wish.anyFamily() {
			return nil, first
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

// anyFamily: one address of whatever family there is.
func (w Wish) anyFamily() bool {
	return len(w.Families) == 0 && len(w.Requested) == 0 && (w.Policy == "" || w.Policy == SingleStack)
}

// families returns the families to serve in order, and whether some of them may be missing.
func (w Wish) families(before []Grant) (families []Family, optional bool) {
	for _, family := range w.Families {
		if !slices.Contains(families, family) {
			families = append(families, family)
		}
	}
	if len(families) == 0 {
		for _, requested := range w.Requested {
			families = append(families, FamilyOf(requested))
		}
	}
	if len(families) == 0 && len(before) > 0 {
		families = append(families, FamilyOf(before[0].Address))
	}
	dual := w.Policy == PreferDualStack || w.Policy == RequireDualStack
	if dual || w.anyFamily() {
		for _, family := range []Family{IPv4, IPv6} {
			if !slices.Contains(families, family) {
				families = append(families, family)
			}
		}
	} else {
		families = families[:1]
	}
	return families, w.Policy == PreferDualStack
}

// one finds an address of the family.
func (a *Allocator) one(holder string, wish Wish, family Family, before []Grant) (Grant, *Refusal) {
	for _, requested := range wish.Requested {
		if FamilyOf(requested) == family {
			return a.requested(holder, wish, requested, before)
		}
	}
	for _, g := range before {
		if FamilyOf(g.Address) == family && (wish.Pool == "" || wish.Pool == g.Pool) {
			return g, nil
		}
	}
	return a.next(wish, family)
}

// gives reports whether new addresses of the pool may go to who wishes so.
func (a *Allocator) gives(pool Pool, wish Wish) bool {
	_, off := a.disabled[pool.Name]
	return !off && !pool.Draining && pool.Allows(wish.Tenant) && (wish.Pool == "" || wish.Pool == pool.Name)
}

func (a *Allocator) requested(holder string, wish Wish, address netip.Addr, before []Grant) (Grant, *Refusal) {
	if other, taken := a.holders[address]; taken {
		return Grant{}, &Refusal{AddressInUse, fmt.Sprintf("requested address %s is held by another LoadBalancer%s; ask for another one or none",
			address, sameTenant(holder, other))}
	}
	for _, g := range before {
		if g.Address == address {
			return g, nil
		}
	}
	for _, pool := range a.pools {
		if a.gives(pool, wish) && pool.Contains(address) {
			return Grant{address, pool.Name}, nil
		}
	}
	return Grant{}, &Refusal{AddressNotAvailable, fmt.Sprintf("requested address %s is in no address pool that gives addresses to tenant %s; ask for one of %s, or none",
		address, wish.Tenant, a.describe(wish))}
}

// sameTenant names the other holder to those who may know it: a holder's name starts with its namespace.
func sameTenant(holder, other string) string {
	mine, _, _ := strings.Cut(holder, "/")
	theirs, _, _ := strings.Cut(other, "/")
	if mine != theirs {
		return ""
	}
	return " (" + other + ")"
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
	return "the pools " + strings.Join(names, ", ")
}

// next takes the next free address of the first pool that has one. Whoever names a pool need not be given its addresses unasked.
func (a *Allocator) next(wish Wish, family Family) (Grant, *Refusal) {
	var full []string
	byPriority := slices.Clone(a.pools)
	slices.SortStableFunc(byPriority, func(x, y Pool) int { return cmp.Compare(y.Priority, x.Priority) })
	for _, pool := range byPriority {
		if !a.gives(pool, wish) || !pool.AutoAssign && wish.Pool == "" || !pool.has(family) {
			continue
		}
		if address, ok := a.free(pool, family); ok {
			return Grant{address, pool.Name}, nil
		}
		full = append(full, pool.Name)
	}
	if len(full) > 0 {
		return Grant{}, &Refusal{PoolExhausted, fmt.Sprintf("no free %s address in %s: delete a LoadBalancer or add addresses to an AddressPool",
			family, strings.Join(full, ", "))}
	}
	if wish.Pool != "" {
		return Grant{}, &Refusal{NoMatchingPool, fmt.Sprintf("there is no AddressPool %s that gives %s addresses to tenant %s: name another one or none",
			wish.Pool, family, wish.Tenant)}
	}
	return Grant{}, &Refusal{NoMatchingPool, fmt.Sprintf("no AddressPool with autoAssign gives %s addresses to tenant %s: create one, or allow the tenant in spec.tenants of one",
		family, wish.Tenant)}
}

func (p Pool) has(family Family) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return FamilyOf(r.First) == family })
}

// free walks on from where the last walk ended, so that a freed address rests as long as possible before it is dealt
// again: clients and neighbour caches may still know its former owner.
func (a *Allocator) free(pool Pool, family Family) (netip.Addr, bool) {
	usage := a.Usage(pool.Name, family)
	if usage.Free.Sign() <= 0 {
		return netip.Addr{}, false
	}
	key := pool.Name + "/" + family.String()
	at, ok := pool.after(a.cursors[key], family)
	// As many addresses are held as used says, so one more step than that finds a free one.
	for range a.used[pool.Name][family] + 1 {
		if !ok {
			return netip.Addr{}, false
		}
		a.cursors[key] = at
		if _, taken := a.holders[at]; !taken {
			return at, true
		}
		at, ok = pool.after(at, family)
	}
	return netip.Addr{}, false
}

// after returns the pool's address of the family that follows, the first again after the last.
func (p Pool) after(at netip.Addr, family Family) (netip.Addr, bool) {
	var ranges []Range
	for _, r := range p.Ranges {
		if FamilyOf(r.First) == family {
			ranges = append(ranges, r)
		}
	}
	if len(ranges) == 0 {
		return netip.Addr{}, false
	}
	for i, r := range ranges {
		if at.IsValid() && r.Contains(at) {
			if at != r.Last {
				return at.Next(), true
			}
			return ranges[(i+1)%len(ranges)].First, true
		}
	}
	return ranges[0].First, true
}

func (a *Allocator) take(holder string, g Grant) {
	a.holders[g.Address] = holder
	a.held[holder] = append(a.held[holder], g)
	a.count(g.Address, 1)
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
	return Usage{used, free.Sub(free, big.NewInt(used))}
}
