package ipam

import (
	"cmp"
	"fmt"
	"maps"
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
	Claim
	// Limits are the tenant's.
	Limits Limits
}

// Limits bound what a tenant's LoadBalancers have together; nil bounds nothing. What they have already no limit takes away.
type Limits struct {
	// LoadBalancers is how many may have addresses, Addresses how many addresses they may have, each counted once.
	LoadBalancers *int32 `json:"loadBalancers,omitempty"`
	Addresses     *int32 `json:"addresses,omitempty"`
	// Ports is how many ports they may have.
	Ports *int32 `json:"ports,omitempty"`
}

// Claim is by what LoadBalancers of one tenant may share an address: they bear the same key, and no port is in two of them.
type Claim struct {
	// Sharing is the key. Who has none shares nothing.
	Sharing string
	Ports   []Port
}

// Port is one of an address. Protocol is TCP or UDP.
type Port struct {
	Protocol string
	Number   int32
}

// tolerates tells whether the two may have one address, both being of one tenant.
func (c Claim) tolerates(o Claim) bool {
	return c.Sharing != "" && c.Sharing == o.Sharing && !slices.ContainsFunc(c.Ports, func(p Port) bool { return slices.Contains(o.Ports, p) })
}

func (c Claim) equal(o Claim) bool { return c.Sharing == o.Sharing && slices.Equal(c.Ports, o.Ports) }

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
	// Keeps is what the holder goes on with, where it has addresses and asks for more ports than there may be.
	Keeps *Claim
	// final: no other family makes up for it, since the holder would lose what it has.
	final bool
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }

// Reasons of a refusal.
const (
	NoMatchingPool      = "NoMatchingPool"
	PoolExhausted       = "PoolExhausted"
	AddressInUse        = "AddressInUse"
	AddressNotAvailable = "AddressNotAvailable"
	LimitReached        = "LimitReached"
)

// Allocator remembers who holds which address. Its owner feeds it every allocation that is on record (Adopt) before it
// asks for the first new one (Allocate). It is not safe for concurrent use.
type Allocator struct {
	pools    []Pool
	disabled map[string]Overlap
	// holders of an address are more than one where it is shared; claims are those by which they have got it.
	holders map[netip.Addr][]string
	claims  map[string]Claim
	// held is what holders have, by their tenant and name.
	held    map[string]map[string][]Grant
	cursors map[string]netip.Addr
	used    map[string]map[Family]int64
}

// NewAllocator returns an allocator without pools, in which no address is held.
func NewAllocator() *Allocator {
	return &Allocator{holders: map[netip.Addr][]string{}, claims: map[string]Claim{}, held: map[string]map[string][]Grant{}, cursors: map[string]netip.Addr{}}
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

// Adopt records allocations that stand on record, with the claim that the holder makes now. It reports each address that another tenant
// holds already; that one is not recorded. What LoadBalancers of one tenant have together on record they keep, whatever they claim: no
// change of one costs another one its address.
func (a *Allocator) Adopt(holder string, claim Claim, grants []Grant) []error {
	var conflicts []error
	a.claims[holder] = claim
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
	a.claims[holder] = claim
}

// PortsOf is how many ports the holder has its addresses for.
func (a *Allocator) PortsOf(holder string) int { return len(a.claims[holder].Ports) }

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
		a.claims[holder] = claim
	}
	for _, g := range grants {
		a.take(holder, g)
	}
	return grants, refusal
}

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
	if n := a.portsOfAll(others) + int32(len(wish.Ports)); n > *limits.Ports {
		refusal := overLimit(wish.Tenant, "ports", *limits.Ports, fmt.Sprintf("it would have %d ports", n))
		if len(before.Grants) > 0 {
			refusal.Keeps = &before.Claim
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

// portsOfAll counts the ports that holders have.
func (a *Allocator) portsOfAll(held map[string][]Grant) (n int32) {
	for holder := range held {
		n += int32(len(a.claims[holder].Ports))
	}
	return n
}

func overLimit(tenant, limit string, is int32, would string) *Refusal {
	return &Refusal{Reason: LimitReached, Message: fmt.Sprintf("Tenant %s, spec.limits.%s is %d, and %s: delete one that is not needed, or have the management cluster's operator raise it", tenant, limit, is, would), final: true}
}

// Count is what a tenant's LoadBalancers have together.
type Count struct{ LoadBalancers, Addresses, Ports int32 }

// CountOf counts what the holders have whose names begin with the namespace.
func (a *Allocator) CountOf(namespace string) Count {
	held := a.held[namespace]
	return Count{int32(len(held)), int32(len(addressesOf(held))), a.portsOfAll(held)}
}

// may tells whether the wish may have the address: nobody else has it, or all that do tolerate that. By the claim that it had it before
// it keeps it, so that no other one's change costs it anything.
func (a *Allocator) may(holder string, wish Wish, address netip.Addr, before Holding) bool {
	kept := wish.Claim.equal(before.Claim) && slices.ContainsFunc(before.Grants, func(g Grant) bool { return g.Address == address })
	return kept || !slices.ContainsFunc(a.others(holder, address), func(o string) bool {
		return tenantOf(o) != tenantOf(holder) || !wish.Claim.tolerates(a.claims[o])
	})
}

// decide chooses an address for each wished family while none of the holder's own is taken.
func (a *Allocator) decide(holder string, wish Wish, before Holding) ([]Grant, *Refusal) {
	families, optional := wish.families(before.Grants)
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
func (a *Allocator) one(holder string, wish Wish, family Family, before Holding) (Grant, *Refusal) {
	for _, requested := range wish.Requested {
		if FamilyOf(requested) == family {
			return a.requested(holder, wish, requested, before)
		}
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
	return a.next(wish, family)
}

// shared finds an address that others hold who share it, the lowest one.
func (a *Allocator) shared(holder string, wish Wish, family Family) (found Grant, ok bool) {
	if wish.Sharing == "" {
		return Grant{}, false
	}
	for address := range a.holders {
		if FamilyOf(address) != family || ok && !address.Less(found.Address) || !a.may(holder, wish, address, Holding{}) {
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

// inUse says who has an address that cannot be had besides.
func (a *Allocator) inUse(holder string, address netip.Addr, what string) *Refusal {
	others := a.others(holder, address)
	if tenantOf(others[0]) != tenantOf(holder) {
		return &Refusal{Reason: AddressInUse, Message: what + " is held by another LoadBalancer; ask for another one or none"}
	}
	return &Refusal{Reason: AddressInUse, Message: fmt.Sprintf("%s is held by another LoadBalancer (%s); ask for another one or none, or give both the same sharing key and ports apart", what, strings.Join(others, ", "))}
}

// gives reports whether new addresses of the pool may go to who wishes so.
func (a *Allocator) gives(pool Pool, wish Wish) bool {
	_, off := a.disabled[pool.Name]
	return !off && !pool.Draining && pool.Allows(wish.Tenant) && (wish.Pool == "" || wish.Pool == pool.Name)
}

func (a *Allocator) requested(holder string, wish Wish, address netip.Addr, before Holding) (Grant, *Refusal) {
	if !a.may(holder, wish, address, before) {
		return Grant{}, a.inUse(holder, address, "requested address "+address.String())
	}
	for _, g := range before.Grants {
		if g.Address == address {
			return g, nil
		}
	}
	for _, pool := range a.pools {
		if a.gives(pool, wish) && pool.Contains(address) {
			return Grant{address, pool.Name}, nil
		}
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
		return Grant{}, &Refusal{Reason: PoolExhausted, Message: fmt.Sprintf("no free %s address in %s: delete a LoadBalancer or add addresses to an AddressPool",
			family, strings.Join(full, ", "))}
	}
	if wish.Pool != "" {
		return Grant{}, &Refusal{Reason: NoMatchingPool, Message: fmt.Sprintf("there is no AddressPool %s that gives %s addresses to tenant %s: name another one or none",
			wish.Pool, family, wish.Tenant)}
	}
	return Grant{}, &Refusal{Reason: NoMatchingPool, Message: fmt.Sprintf("no AddressPool with autoAssign gives %s addresses to tenant %s: create one, or allow the tenant in spec.tenants of one",
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
