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

// BGP is the strategy if every gateway announces every address. Routers may send packets of a connection to another gateway at any time, above all
// when a gateway starts or ends. Each gateway redirects to the next one by name, and the last one to the first. So a packet passes all gateways
// wherever it arrives. A gateway that has gone, or that the AddressPool does not select any more, stays a next hop for a limited time: its dataplane
// may still know connections.
type BGP struct {
	self  string
	limit time.Duration
	alive func([]netip.Addr) []netip.Addr
	// peers are the possible next hops, by name. until is when a peer that has gone is not one any more.
	peers []peer
	until map[string]time.Time
	// selected decides which gateways serve an address. digest is its hash, and since is when it was set.
	selected         *selection.Selection
	digest           string
	since            time.Time
	formerSelections []formerSelection
	// sent is what the dataplane was sent. lastState is the state from which that was calculated.
	sent      map[netip.Addr]model.Redirect
	lastState string
}

var _ Strategy = (*BGP)(nil)

// peer is a possible next hop: the addresses at which it takes packets, and whether it stays active.
type peer struct {
	name        string
	addresses   []netip.Addr
	staysActive bool
}

type formerSelection struct {
	selection *selection.Selection
	until     time.Time
}

// maxFormerSelections bounds the number of former selections.
const maxFormerSelections = 8

// NewBGP returns a strategy that redirects to a gateway for the limit after it has gone. alive returns the addresses at which a host answers.
func NewBGP(self string, limit time.Duration, alive func([]netip.Addr) []netip.Addr) *BGP {
	return &BGP{self: self, limit: limit, alive: alive, until: map[string]time.Time{}, sent: map[netip.Addr]model.Redirect{}}
}

// Select sets which gateways serve which addresses.
func (b *BGP) Select(s *selection.Selection, now time.Time) {
	digest := s.Digest()
	if b.selected != nil && digest == b.digest {
		return
	}
	if b.selected != nil {
		b.formerSelections = append(b.formerSelections, formerSelection{b.selected, now.Add(b.limit)})
		b.formerSelections = b.formerSelections[max(0, len(b.formerSelections)-maxFormerSelections):]
	}
	b.selected, b.digest, b.since = s.Clone(), digest, now
}

// SelectedSince returns when the present selection was set.
func (b *BGP) SelectedSince() time.Time { return b.since }

// Update implements Strategy.
func (b *BGP) Update(peers []membership.Peer, held map[netip.Addr]bool, now time.Time) (changed []netip.Addr) {
	if b.limit == 0 {
		return nil
	}
	var included []membership.Peer
	for _, p := range peers {
		if b.include(p, now) {
			included = append(included, p)
		}
	}
	addresses := redirectAddresses(included, b.alive)
	b.peers = nil
	for _, p := range included {
		b.peers = append(b.peers, peer{name: p.Name, addresses: addresses[p.Name], staysActive: p.StaysActive()})
	}
	maps.DeleteFunc(b.until, func(name string, _ time.Time) bool {
		return !slices.ContainsFunc(peers, func(p membership.Peer) bool { return p.Name == name })
	})
	b.formerSelections = slices.DeleteFunc(b.formerSelections, func(f formerSelection) bool { return !now.Before(f.until) })
	state := fmt.Sprint(b.peers, b.digest, len(b.formerSelections))
	if state == b.lastState {
		return nil
	}
	b.lastState = state
	for address := range held {
		if b.redirectOf(address) != b.sent[address] {
			changed = append(changed, address)
		}
	}
	return changed
}

// include reports whether a peer is a possible next hop. If the peer does not stay active, it notes until when.
func (b *BGP) include(p membership.Peer, now time.Time) bool {
	until, seen := b.until[p.Name]
	if p.StaysActive() || !seen {
		b.until[p.Name] = now.Add(b.limit)
		return true
	}
	return now.Before(until)
}

// RedirectOf implements Strategy.
func (b *BGP) RedirectOf(address netip.Addr) model.Redirect {
	h := b.redirectOf(address)
	b.sent[address] = h
	return h
}

// redirectOf returns the redirect of the address.
func (b *BGP) redirectOf(vip netip.Addr) (redirect model.Redirect) {
	if b.selected == nil {
		return model.Redirect{}
	}
	serving := []selection.Serving{b.selected.ServingAddress(vip)}
	for _, f := range b.formerSelections {
		serving = append(serving, f.selection.ServingAddress(vip))
	}
	afterSelf := false
	for _, p := range b.peers {
		address, ok := firstOfFamily(p.addresses, vip)
		if !ok || !slices.ContainsFunc(serving, func(serves selection.Serving) bool { return serves.By(p.name) }) {
			continue
		}
		if !redirect.Next.IsValid() || !afterSelf && p.name > b.self {
			redirect.Next, afterSelf = address, p.name > b.self
		}
		redirect.Limit = min(redirect.Limit+1, model.MaxRedirects)
	}
	return redirect
}

// Remove implements Strategy.
func (b *BGP) Remove(address netip.Addr) { delete(b.sent, address) }

// NextExpiry implements Strategy.
func (b *BGP) NextExpiry() (next time.Time) {
	consider := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, p := range b.peers {
		if !p.staysActive {
			consider(b.until[p.name])
		}
	}
	for _, f := range b.formerSelections {
		consider(f.until)
	}
	return next
}

// FormerCount implements Strategy: with BGP no gateway owns an address.
func (b *BGP) FormerCount() int { return 0 }
