package redirect

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/membership"
	"kubelb.k8c.io/manager/selection"
)

// BGP is the strategy where every gateway announces every address. Routers send packets of a connection to another gateway whenever they like, most
// of all when a gateway comes or goes. Each gateway redirects to the next one by name, and the last one to the first, so that a packet passes all of
// them wherever it arrives. A gateway that is gone, or that an address's pool does not choose any more, stays in the ring for a while: its dataplane
// may still know connections.
type BGP struct {
	self  string
	limit time.Duration
	alive func([]netip.Addr) []netip.Addr
	// ring are the peers in the ring, by name. until is when a peer leaves the ring that is gone.
	ring  []member
	until map[string]time.Time
	// selected is which gateways serve which address, since when, and its digest. before are former selections.
	selected *selection.Selection
	digest   string
	since    time.Time
	before   []formerSelection
	// sent is what the dataplane was sent. known is the state from which that was found.
	sent  map[netip.Addr]model.Handover
	known string
}

var _ Strategy = (*BGP)(nil)

// member is a peer in the ring: where it takes packets, and whether it is present and stays.
type member struct {
	name  string
	at    []netip.Addr
	stays bool
}

type formerSelection struct {
	selection *selection.Selection
	until     time.Time
}

// maxFormerSelections bounds how many former selections count.
const maxFormerSelections = 8

// NewBGP returns a strategy that redirects to a gateway for the limit after it has gone. alive returns those of the addresses at which a host answers.
func NewBGP(self string, limit time.Duration, alive func([]netip.Addr) []netip.Addr) *BGP {
	return &BGP{self: self, limit: limit, alive: alive, until: map[string]time.Time{}, sent: map[netip.Addr]model.Handover{}}
}

// Select notes which gateways serve which address now.
func (b *BGP) Select(s *selection.Selection, now time.Time) {
	digest := s.Digest()
	if b.selected != nil && digest == b.digest {
		return
	}
	if b.selected != nil {
		b.before = append(b.before, formerSelection{b.selected, now.Add(b.limit)})
		b.before = b.before[max(0, len(b.before)-maxFormerSelections):]
	}
	b.selected, b.digest, b.since = s.Clone(), digest, now
}

// SelectedSince is when the present selection was noted first.
func (b *BGP) SelectedSince() time.Time { return b.since }

// Update implements Strategy.
func (b *BGP) Update(peers []membership.Peer, held map[netip.Addr]bool, now time.Time) (changed []netip.Addr) {
	if b.limit == 0 {
		return nil
	}
	var included []membership.Peer
	for _, p := range peers {
		if b.includes(p, now) {
			included = append(included, p)
		}
	}
	at := addressesOf(included, b.alive)
	b.ring = nil
	for _, p := range included {
		b.ring = append(b.ring, member{name: p.Name, at: at[p.Name], stays: p.StaysActive()})
	}
	maps.DeleteFunc(b.until, func(name string, _ time.Time) bool {
		return !slices.ContainsFunc(peers, func(p membership.Peer) bool { return p.Name == name })
	})
	b.before = slices.DeleteFunc(b.before, func(f formerSelection) bool { return !now.Before(f.until) })
	known := fmt.Sprint(b.ring, b.digest, len(b.before))
	if known == b.known {
		return nil
	}
	b.known = known
	for address := range held {
		if b.of(address) != b.sent[address] {
			changed = append(changed, address)
		}
	}
	return changed
}

// includes tells whether a peer is in the ring, and notes until when if it does not stay.
func (b *BGP) includes(p membership.Peer, now time.Time) bool {
	until, seen := b.until[p.Name]
	if p.StaysActive() || !seen {
		b.until[p.Name] = now.Add(b.limit)
		return true
	}
	return now.Before(until)
}

// Send implements Strategy.
func (b *BGP) Send(address netip.Addr) model.Handover {
	h := b.of(address)
	b.sent[address] = h
	return h
}

// of is the redirect of the address.
func (b *BGP) of(address netip.Addr) (h model.Handover) {
	if b.selected == nil {
		return model.Handover{}
	}
	serving := []selection.Serving{b.selected.ServingAddress(address)}
	for _, f := range b.before {
		serving = append(serving, f.selection.ServingAddress(address))
	}
	follows := false
	for _, m := range b.ring {
		at, reached := ofFamily(m.at, address)
		if !reached || !slices.ContainsFunc(serving, func(serves selection.Serving) bool { return serves.By(m.name) }) {
			continue
		}
		if !h.Next.IsValid() || !follows && m.name > b.self {
			h.Next, follows = at, m.name > b.self
		}
		h.Asks = min(h.Asks+1, model.MaxAsks)
	}
	return h
}

// Forget implements Strategy.
func (b *BGP) Forget(address netip.Addr) { delete(b.sent, address) }

// Expires implements Strategy.
func (b *BGP) Expires() (next time.Time) {
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, m := range b.ring {
		if !m.stays {
			sooner(b.until[m.name])
		}
	}
	for _, f := range b.before {
		sooner(f.until)
	}
	return next
}

// Former implements Strategy: with BGP no gateway owns an address.
func (b *BGP) Former() int { return 0 }
