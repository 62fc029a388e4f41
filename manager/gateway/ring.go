package gateway

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

// ring is whom gateways ask about connections that they do not know, where every gateway answers for every address: routers lead a
// connection to another gateway whenever they like, and most of all when one comes or goes. Each gateway asks the next one by name, and the
// last one the first, so that all are asked wherever a packet arrives. One that is gone, or that an address's pool does not choose any
// more, is in the ring for a while: its dataplane may know connections still.
type ring struct {
	self  string
	limit time.Duration
	// members are the others that are asked, by name; until is up to when one of them is that is there no more.
	members []member
	until   map[string]time.Time
	// selected is which gateways serve which address, since when, and by which digest; before are selections of not long ago.
	selected *selection.Selection
	digest   string
	since    time.Time
	before   []selectedBefore
	// told is what the dataplane was told; known is what that was found out from.
	told  map[netip.Addr]model.Handover
	known string
}

// member is another gateway: where it is asked, and whether it is there, and stays.
type member struct {
	name  string
	at    []netip.Addr
	stays bool
}

type selectedBefore struct {
	selection *selection.Selection
	until     time.Time
}

// mostBefore bounds how many former selections count.
const mostBefore = 8

func newRing(self string, limit time.Duration) ring {
	return ring{self: self, limit: limit, until: map[string]time.Time{}, told: map[netip.Addr]model.Handover{}}
}

// choose takes note of which gateways serve which address now.
func (r *ring) choose(s *selection.Selection, now time.Time) {
	digest := s.Digest()
	if r.selected != nil && digest == r.digest {
		return
	}
	if r.selected != nil {
		r.before = append(r.before, selectedBefore{r.selected, now.Add(r.limit)})
		r.before = r.before[max(0, len(r.before)-mostBefore):]
	}
	r.selected, r.digest, r.since = s.Clone(), digest, now
}

// look brings the ring to what is known of the others, and returns those of the addresses about which others are to be asked than before.
func (r *ring) look(others []membership.Other, alive func([]netip.Addr) []netip.Addr, addresses map[netip.Addr]bool, now time.Time) (changed []netip.Addr) {
	if r.limit == 0 {
		return nil
	}
	var asked []membership.Other
	for _, o := range others {
		if r.asks(o, now) {
			asked = append(asked, o)
		}
	}
	at := reached(asked, alive)
	r.members = nil
	for _, o := range asked {
		r.members = append(r.members, member{name: o.Name, at: at[o.Name], stays: stays(o)})
	}
	maps.DeleteFunc(r.until, func(name string, _ time.Time) bool {
		return !slices.ContainsFunc(others, func(o membership.Other) bool { return o.Name == name })
	})
	r.before = slices.DeleteFunc(r.before, func(b selectedBefore) bool { return !now.Before(b.until) })
	known := fmt.Sprint(r.members, r.digest, len(r.before))
	if known == r.known {
		return nil
	}
	r.known = known
	for address := range addresses {
		if r.of(address) != r.told[address] {
			changed = append(changed, address)
		}
	}
	return changed
}

// stays tells whether a gateway is there, and will be.
func stays(o membership.Other) bool { return o.Present && !o.Leaving }

// asks tells whether a gateway is in the ring, and notes until when if it is there no more.
func (r *ring) asks(o membership.Other, now time.Time) bool {
	until, seen := r.until[o.Name]
	if stays(o) || !seen {
		r.until[o.Name] = now.Add(r.limit)
		return true
	}
	return now.Before(until)
}

// tell returns of as what the dataplane is about to be told.
func (r *ring) tell(address netip.Addr) model.Handover {
	h := r.of(address)
	r.told[address] = h
	return h
}

// of is whom this gateway asks about connections to the address.
func (r *ring) of(address netip.Addr) (h model.Handover) {
	if r.selected == nil {
		return model.Handover{}
	}
	serves := []func(string) bool{everyoneUnless(r.selected.ServingAddress(address))}
	for _, b := range r.before {
		serves = append(serves, everyoneUnless(b.selection.ServingAddress(address)))
	}
	follows := false
	for _, m := range r.members {
		at, reached := ofFamily(m.at, address)
		if !reached || !slices.ContainsFunc(serves, func(serves func(string) bool) bool { return serves(m.name) }) {
			continue
		}
		if !h.Next.IsValid() || !follows && m.name > r.self {
			h.Next, follows = at, m.name > r.self
		}
		h.Asks = min(h.Asks+1, model.MaxAsks)
	}
	return h
}

func (r *ring) forget(address netip.Addr) { delete(r.told, address) }

// ends is when the next one is asked no more that is gone or not chosen any more; zero for never.
func (r *ring) ends() (next time.Time) {
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, m := range r.members {
		if !m.stays {
			sooner(r.until[m.name])
		}
	}
	for _, b := range r.before {
		sooner(b.until)
	}
	return next
}

// everyoneUnless serves, unless it is said who does.
func everyoneUnless(serving func(string) bool) func(string) bool {
	if serving == nil {
		return func(string) bool { return true }
	}
	return serving
}
