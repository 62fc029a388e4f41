package announce

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Conflict is an address of this gateway's that another host on the segment says is its own (RFC 5227 section 1.1). Of such an address
// nobody knows whom clients reach.
type Conflict struct {
	Address netip.Addr
	// MAC is that host's, as it said last.
	MAC string
}

// claim is what was heard of another host that says that an address of ours is its own.
type claim struct {
	mac         string
	first, last time.Time
	// certain: it went on for so long that it is no frame that was late, of a gateway that had the address before.
	certain bool
}

const (
	// certainAfter is for how long a claim has to go on.
	certainAfter = time.Second
	// claimChecks is how often the host that made a claim is asked, forgottenAfter how long after its last answer that was the last one.
	claimChecks    = 5 * time.Second
	forgottenAfter = 3*claimChecks + time.Second
	// maxClaims are followed at a time: a host that claims everything gives no more work than that.
	maxClaims = 64
)

// Conflicts are the addresses that others claim, in their order.
func (l *Layer2) Conflicts() []Conflict {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Conflict
	for a, c := range l.claims {
		if c.certain {
			all = append(all, Conflict{a, c.mac})
		}
	}
	slices.SortFunc(all, func(a, b Conflict) int { return a.Address.Compare(b.Address) })
	return all
}

// heard notes that somebody said that an address is at a MAC.
func (l *Layer2) heard(a netip.Addr, mac net.HardwareAddr) {
	if l.claimed(a, mac, time.Now()) {
		l.options.Log.Warn("another host answers for an address of this gateway", "address", a, "mac", mac.String())
		l.options.Changed()
	}
}

// claimed tells whether that makes a conflict that was none before. Without the lease the address may be another gateway's by now.
func (l *Layer2) claimed(a netip.Addr, mac net.HardwareAddr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.owned[a] || l.own(mac) || !l.options.Holds() {
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
	before := c.certain
	c.certain = before || now.Sub(c.first) >= certainAfter
	return c.certain && !before
}

// own tells whether a MAC is that of one of the links; mu is held.
func (l *Layer2) own(mac net.HardwareAddr) bool {
	for _, k := range l.links {
		if slices.Equal(k.state.MAC, mac) {
			return true
		}
	}
	return false
}

// follow asks those who made claims whether they still do.
func (l *Layer2) follow() {
	if over := l.forget(time.Now()); len(over) > 0 {
		l.options.Log.Info("no other host answers for these addresses any more", "addresses", over)
		l.options.Changed()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ask(slices.Collect(maps.Keys(l.claims)))
}

// forget drops claims that nobody makes any more, and returns of which addresses those had been certain.
func (l *Layer2) forget(now time.Time) (over []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, c := range l.claims {
		if now.Sub(c.last) < forgottenAfter {
			continue
		}
		if delete(l.claims, a); c.certain {
			over = append(over, a)
		}
	}
	return over
}

// ask asks on every link that is up who has addresses of ours; mu is held.
func (l *Layer2) ask(addresses []netip.Addr) {
	for _, k := range l.links {
		l.each(k, addresses, "ask for", questionFor)
	}
}
