package redirect

import (
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/membership"
)

// Layer2 is the strategy if one gateway owns each address. For a limited time, and as long as the former owner of an address works, packets of
// unknown connections are redirected to it. The former owner redirects to its own former owner, and so on.
type Layer2 struct {
	limit time.Duration
	alive func([]netip.Addr) []netip.Addr
	// owners are the owners of addresses as this gateway has seen them last. former are the gateways from which this gateway has taken addresses
	// over.
	owners map[netip.Addr]string
	former map[netip.Addr]formerGateway
}

var _ Strategy = (*Layer2)(nil)

// formerGateway gets packets until a time.
type formerGateway struct {
	name  string
	until time.Time
	// address is where the gateway takes packets, of the VIP's family. It changes when the gateway publishes another one.
	address netip.Addr
}

// maxRedirects is how often a packet is redirected at most. It bounds loops between two gateways that took an address from each other. An address
// rarely moves more often within the limit.
const maxRedirects = 3

// NewLayer2 returns a strategy that redirects for the limit after an address has moved. alive returns the addresses at which a host answers.
func NewLayer2(limit time.Duration, alive func([]netip.Addr) []netip.Addr) *Layer2 {
	return &Layer2{limit: limit, alive: alive, owners: map[netip.Addr]string{}, former: map[netip.Addr]formerGateway{}}
}

// SetOwner notes which gateway owns an address now. If this gateway has taken it over, packets are redirected to the former owner.
func (l *Layer2) SetOwner(address netip.Addr, owner, self string, now time.Time) {
	before := l.owners[address]
	if owner == before {
		return
	}
	l.owners[address] = owner
	if owner == self && before != "" {
		l.former[address] = formerGateway{name: before, until: now.Add(l.limit)}
	}
}

// Update implements Strategy.
func (l *Layer2) Update(peers []membership.Peer, _ map[netip.Addr]bool, now time.Time) (changed []netip.Addr) {
	wanted := map[string]bool{}
	for _, f := range l.former {
		wanted[f.name] = true
	}
	addresses := redirectAddresses(slices.DeleteFunc(slices.Clone(peers), func(p membership.Peer) bool { return !wanted[p.Name] }), l.alive)
	for address, f := range l.former {
		var current netip.Addr
		if now.Before(f.until) {
			current, _ = firstOfFamily(addresses[f.name], address)
		}
		if current != f.address {
			f.address = current
			l.former[address] = f
			changed = append(changed, address)
		}
		if !now.Before(f.until) {
			delete(l.former, address)
		}
	}
	return changed
}

// RedirectOf implements Strategy.
func (l *Layer2) RedirectOf(address netip.Addr) model.Redirect {
	nextHop := l.former[address].address
	if !nextHop.IsValid() {
		return model.Redirect{}
	}
	return model.Redirect{Next: nextHop, Limit: maxRedirects}
}

// Remove implements Strategy.
func (l *Layer2) Remove(address netip.Addr) {
	delete(l.owners, address)
	delete(l.former, address)
}

// NextExpiry implements Strategy.
func (l *Layer2) NextExpiry() (next time.Time) {
	for _, f := range l.former {
		if f.address.IsValid() && (next.IsZero() || f.until.Before(next)) {
			next = f.until
		}
	}
	return next
}

// FormerCount implements Strategy.
func (l *Layer2) FormerCount() int { return len(l.former) }
