package announce

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Conflict is an address of this gateway that another host on the segment also has (RFC 5227 section 1.1). Clients may reach either.
type Conflict struct {
	Address netip.Addr
	// MAC is the last known MAC address of that host.
	MAC string
}

// claim is what was heard of another host that claims one of our addresses.
type claim struct {
	mac         string
	first, last time.Time
	// confirmed: the claim has lasted for confirmAfter, so it is no late frame of a gateway that had the address before.
	confirmed bool
}

const (
	// confirmAfter is how long a claim has to last before it counts.
	confirmAfter = time.Second
	// claimCheckInterval is the interval of queries to the host of a claim. A claim expires claimLifetime after its last answer.
	claimCheckInterval = 5 * time.Second
	claimLifetime      = 3*claimCheckInterval + time.Second
	// maxClaims bounds the claims that are tracked, so that a host that claims all addresses causes little work.
	maxClaims = 64
)

// Conflicts returns the addresses that other hosts claim, sorted.
func (l *Layer2) Conflicts() []Conflict {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Conflict
	for a, c := range l.claims {
		if c.confirmed {
			all = append(all, Conflict{a, c.mac})
		}
	}
	slices.SortFunc(all, func(a, b Conflict) int { return a.Address.Compare(b.Address) })
	return all
}

// observe handles a frame that says that an address is at a MAC address.
func (l *Layer2) observe(a netip.Addr, mac net.HardwareAddr) {
	if l.updateClaim(a, mac, time.Now()) {
		l.options.Log.Warn("another host answers for an address of this gateway", "address", a, "mac", mac.String())
		l.options.Changed()
	}
}

// updateClaim reports whether there is a new conflict. Without the lease another gateway may have the address by now.
func (l *Layer2) updateClaim(a netip.Addr, mac net.HardwareAddr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.owned[a] || l.own(mac) || !l.options.HoldsLease() {
		return false
	}
	c := l.claims[a]
	if c == nil {
		if len(l.claims) >= maxClaims {
			return false
		}
		c = &claim{first: now}
		l.claims[a] = c
	}
	c.mac, c.last = mac.String(), now
	before := c.confirmed
	c.confirmed = before || now.Sub(c.first) >= confirmAfter
	return c.confirmed && !before
}

// own reports whether a MAC address is of one of the links. mu is held.
func (l *Layer2) own(mac net.HardwareAddr) bool {
	for _, k := range l.links {
		if slices.Equal(k.state.MAC, mac) {
			return true
		}
	}
	return false
}

// checkClaims sends queries for the claimed addresses.
func (l *Layer2) checkClaims() {
	if ended := l.expireClaims(time.Now()); len(ended) > 0 {
		l.options.Log.Info("no other host answers for these addresses any more", "addresses", ended)
		l.options.Changed()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.query(slices.Collect(maps.Keys(l.claims)))
}

// expireClaims removes expired claims, and returns the addresses of those that were confirmed.
func (l *Layer2) expireClaims(now time.Time) (ended []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, c := range l.claims {
		if now.Sub(c.last) < claimLifetime {
			continue
		}
		if delete(l.claims, a); c.confirmed {
			ended = append(ended, a)
		}
	}
	return ended
}

// query asks on each link that is up which hosts have these addresses of ours. mu is held.
func (l *Layer2) query(addresses []netip.Addr) {
	for _, k := range l.links {
		l.sendEach(k, addresses, "ask for", queryFor)
	}
}
