package ipam

import (
	"fmt"
	"net/netip"
	"slices"
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
	// Families in order of preference; empty means those of Endpoints, or else IPv4, or else IPv6.
	Families []Family
	// Endpoints are the families of the endpoints, as far as they are known. An address of another family reaches none.
	Endpoints []Family
	Policy    Policy
	// Requested addresses, at most one of each family.
	Requested []netip.Addr
	// Pool that the addresses have to be of; empty means any.
	Pool string
	Claim
	// Limits are the tenant's.
	Limits Limits

	// asked is the claim, while it is decided.
	asked asked
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

// asked is a claim by which an address is looked for that others may have.
type asked struct {
	Claim
	ports map[Port]bool
}

func (c Claim) ask() asked {
	a := asked{c, map[Port]bool{}}
	if c.Sharing != "" {
		for _, p := range c.Ports {
			a.ports[p] = true
		}
	}
	return a
}

// tolerates tells whether the two may have one address, both being of one tenant.
func (a asked) tolerates(o Claim) bool {
	return a.Sharing != "" && a.Sharing == o.Sharing && !slices.ContainsFunc(o.Ports, func(p Port) bool { return a.ports[p] })
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
	// KeptClaim is what the holder goes on with, where it has addresses and asks for more ports than there may be.
	KeptClaim *Claim
	// final: no other family makes up for it, since the holder would lose what it has, or has asked for this very address.
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
	// ContradictoryWish: no addresses can be all that is asked for, whichever are free.
	ContradictoryWish = "ContradictoryWish"
)

// contradiction says which part of the wish leaves no room for another part; nil if there is none.
func (w Wish) contradiction(families []Family) *Refusal {
	for i, address := range w.Requested {
		for _, other := range w.Requested[:i] {
			if FamilyOf(other) == FamilyOf(address) {
				return &Refusal{Reason: ContradictoryWish, Message: fmt.Sprintf("the requested addresses %s and %s are both %s: ask for one address of each family", other, address, FamilyOf(address))}
			}
		}
		if !slices.Contains(families, FamilyOf(address)) {
			return &Refusal{Reason: ContradictoryWish, Message: fmt.Sprintf("requested address %s is %s, and spec.ipFamilies and spec.ipFamilyPolicy ask for %s only: change these, or ask for another address",
				address, FamilyOf(address), families[0])}
		}
	}
	return nil
}

// anyFamily: one address of whatever family there is.
func (w Wish) anyFamily() bool {
	return len(w.Families) == 0 && len(w.Requested) == 0 && (w.Policy == "" || w.Policy == SingleStack)
}

// both are the two families, the one first that endpoints have.
func (w Wish) both() []Family {
	if slices.Contains(w.Endpoints, IPv6) && !slices.Contains(w.Endpoints, IPv4) {
		return []Family{IPv6, IPv4}
	}
	return []Family{IPv4, IPv6}
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
		for _, family := range w.both() {
			if !slices.Contains(families, family) {
				families = append(families, family)
			}
		}
	} else {
		families = families[:1]
	}
	return families, w.Policy == PreferDualStack
}
