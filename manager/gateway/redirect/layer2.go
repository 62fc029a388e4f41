package redirect

import (
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/membership"
)

// Layer2 is the strategy where one gateway owns each address. Packets of unknown connections are redirected to the gateway that owned the address
// before, for a while, as long as that gateway works. It redirects to its own former gateway, and so on.
type Layer2 struct {
	limit time.Duration
	alive func([]netip.Addr) []netip.Addr
	// owners are the gateways that own an address, as this gateway has seen it last. former are the gateways from which this one has taken
	// addresses over.
	owners map[netip.Addr]string
	former map[netip.Addr]formerGateway
}

var _ Strategy = (*Layer2)(nil)

// formerGateway gets packets until a time.
type formerGateway struct {
	name  string
	until time.Time
	// at is where it takes packets, in the address's family. It changes as the gateway publishes.
	at netip.Addr
}

// maxRedirects is by how many gateways a packet is redirected, one after another. An address that moves more often within the limit is rare, and two
// gateways that have it from one another would find no end.
const maxRedirects = 3

// NewLayer2 returns a strategy that redirects for the limit after an address has moved. alive returns those of the addresses at which a host answers.
func NewLayer2(limit time.Duration, alive func([]netip.Addr) []netip.Addr) *Layer2 {
	return &Layer2{limit: limit, alive: alive, owners: map[netip.Addr]string{}, former: map[netip.Addr]formerGateway{}}
}

// SetOwner notes which gateway owns an address now. If that is this gateway, and another one owned it, packets are redirected to the other one.
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
	at := addressesOf(slices.DeleteFunc(slices.Clone(peers), func(p membership.Peer) bool { return !wanted[p.Name] }), l.alive)
	for address, f := range l.former {
		var is netip.Addr
		if now.Before(f.until) {
			is, _ = ofFamily(at[f.name], address)
		}
		if is != f.at {
			f.at = is
			l.former[address] = f
			changed = append(changed, address)
		}
		if !now.Before(f.until) {
			delete(l.former, address)
		}
	}
	return changed
}

// Send implements Strategy.
func (l *Layer2) Send(address netip.Addr) model.Handover {
	at := l.former[address].at
	if !at.IsValid() {
		return model.Handover{}
	}
	return model.Handover{Next: at, Asks: maxRedirects}
}

// Forget implements Strategy.
func (l *Layer2) Forget(address netip.Addr) {
	delete(l.owners, address)
	delete(l.former, address)
}

// Expires implements Strategy.
func (l *Layer2) Expires() (next time.Time) {
	for _, f := range l.former {
		if f.at.IsValid() && (next.IsZero() || f.until.Before(next)) {
			next = f.until
		}
	}
	return next
}

// Former implements Strategy.
func (l *Layer2) Former() int { return len(l.former) }
