package ipam

import (
	"fmt"
	"net/netip"
	"slices"
)

// Family is an address family.
type Family uint8

// The families. 0 is any family.
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

// Policy says how many families are requested, as Service.spec.ipFamilyPolicy does.
type Policy string

// The policies; the empty one is SingleStack.
const (
	SingleStack      Policy = "SingleStack"
	PreferDualStack  Policy = "PreferDualStack"
	RequireDualStack Policy = "RequireDualStack"
)

// Request is the request of one LoadBalancer.
type Request struct {
	Tenant string
	// Families are in order of preference. Empty means those of Endpoints, or else IPv4, or else IPv6.
	Families []Family
	// Endpoints are the families of the endpoints, as far as they are known. An address of another family reaches no endpoint.
	Endpoints []Family
	Policy    Policy
	// Requested are addresses, at most one of each family.
	Requested []netip.Addr
	// Pool is the pool that the addresses have to be in. Empty means any pool.
	Pool string
	Claim
	// Limits are the limits of the tenant.
	Limits Limits

	// indexed is the claim with its ports in a map. It is set while an allocation is decided.
	indexed indexedClaim
}

// Claim says with which LoadBalancers of its tenant a LoadBalancer may share an address: with those that have the same key and no port of its own.
type Claim struct {
	// Sharing is the key. A LoadBalancer without a key shares no address.
	Sharing string
	Ports   []Port
}

// Port is a port of an address. Protocol is TCP or UDP.
type Port struct {
	Protocol string
	Number   int32
}

// indexedClaim is a claim that is compared with many others.
type indexedClaim struct {
	Claim
	ports map[Port]bool
}

func (c Claim) index() indexedClaim {
	a := indexedClaim{c, map[Port]bool{}}
	if c.Sharing != "" {
		for _, p := range c.Ports {
			a.ports[p] = true
		}
	}
	return a
}

// canShareWith reports whether two LoadBalancers of one tenant may have the same address.
func (a indexedClaim) canShareWith(o Claim) bool {
	return a.Sharing != "" && a.Sharing == o.Sharing && !slices.ContainsFunc(o.Ports, func(p Port) bool { return a.ports[p] })
}

func (c Claim) equal(o Claim) bool { return c.Sharing == o.Sharing && slices.Equal(c.Ports, o.Ports) }

// Allocation is an address and the pool that it came from.
type Allocation struct {
	Address netip.Addr
	Pool    string
}

// Refusal says why a request is refused. It is an error.
type Refusal struct {
	// Reason is a stable CamelCase word.
	Reason string
	// Message names the problem and the fix.
	Message string
	// KeptClaim is the claim that stays in force for an owner with addresses that requests more ports than its tenant may have.
	KeptClaim *Claim
	// final is set if no other family may be tried: the owner would lose an address, or has requested this one by name.
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
	// ContradictoryRequest is the reason if parts of the request contradict each other: no address could fulfil all of it.
	ContradictoryRequest = "ContradictoryWish"
)

// contradiction returns a refusal if parts of the request contradict each other, or else nil.
func (w Request) contradiction(families []Family) *Refusal {
	for i, address := range w.Requested {
		for _, other := range w.Requested[:i] {
			if FamilyOf(other) == FamilyOf(address) {
				return &Refusal{Reason: ContradictoryRequest, Message: fmt.Sprintf("the requested addresses %s and %s are both %s: ask for one address of each family", other, address, FamilyOf(address))}
			}
		}
		if !slices.Contains(families, FamilyOf(address)) {
			return &Refusal{Reason: ContradictoryRequest, Message: fmt.Sprintf("requested address %s is %s, and spec.ipFamilies and spec.ipFamilyPolicy ask for %s only: change these, or ask for another address",
				address, FamilyOf(address), families[0])}
		}
	}
	return nil
}

// wantsAnyFamily reports whether the request is for one address of any family.
func (w Request) wantsAnyFamily() bool {
	return len(w.Families) == 0 && len(w.Requested) == 0 && (w.Policy == "" || w.Policy == SingleStack)
}

// bothFamilies returns the two families. If endpoints have only one of them, it comes first.
func (w Request) bothFamilies() []Family {
	if slices.Contains(w.Endpoints, IPv6) && !slices.Contains(w.Endpoints, IPv4) {
		return []Family{IPv6, IPv4}
	}
	return []Family{IPv4, IPv6}
}

// families returns the families to allocate, in order, and whether some of them are optional.
func (w Request) families(before []Allocation) (families []Family, optional bool) {
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
	if dual || w.wantsAnyFamily() {
		for _, family := range w.bothFamilies() {
			if !slices.Contains(families, family) {
				families = append(families, family)
			}
		}
	} else {
		families = families[:1]
	}
	return families, w.Policy == PreferDualStack
}
