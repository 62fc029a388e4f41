package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Reservation keeps an address that was asked for by name for the tenant that had it, so that a Service that is made anew gets it again and
// who waits for it does not.
type Reservation struct {
	Address netip.Addr
	// Namespace is the tenant's: what names of its holders begin with.
	Namespace string
	Until     time.Time
}

// Reserve keeps the address until then. A later reservation replaces an earlier one.
func (a *Allocator) Reserve(r Reservation) {
	if r.Until.After(a.now) {
		a.reserved[r.Address] = r
	}
}

// ReserveOf is Reserve for an address of a pool of which there is room for so many. Where there is none, what ends first gives way of the tenant that has
// most kept: nobody's room is taken by who asks for one address after the other.
func (a *Allocator) ReserveOf(poolName string, room int, r Reservation) {
	a.Reserve(r)
	kept := a.Reserved(poolName)
	if len(kept) <= room {
		return
	}
	of := map[string]int{}
	for _, k := range kept {
		of[k.Namespace]++
	}
	slices.SortFunc(kept, func(x, y Reservation) int {
		return cmp.Or(cmp.Compare(of[y.Namespace], of[x.Namespace]), cmp.Compare(x.Namespace, y.Namespace), x.Until.Compare(y.Until), x.Address.Compare(y.Address))
	})
	delete(a.reserved, kept[0].Address)
}

// At tells the allocator what time it is, and reports whether a reservation has ended by that, and when the next one does, if there is one.
func (a *Allocator) At(now time.Time) (ended bool, next time.Time) {
	a.now = now
	for address, r := range a.reserved {
		switch {
		case !r.Until.After(now):
			delete(a.reserved, address)
			ended = true
		case next.IsZero() || r.Until.Before(next):
			next = r.Until
		}
	}
	return ended, next
}

// Reserved are the addresses of the pool that are kept and that nobody holds, in their order.
func (a *Allocator) Reserved(poolName string) (out []Reservation) {
	for _, pool := range a.pools {
		if pool.Name != poolName {
			continue
		}
		for address, r := range a.reserved {
			if pool.Contains(address) {
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, func(x, y Reservation) int { return x.Address.Compare(y.Address) })
	return out
}

// Reservations is how many addresses are kept in all.
func (a *Allocator) Reservations() int { return len(a.reserved) }

// keptFor tells whether the address is kept for another tenant than the one whose namespace it is.
func (a *Allocator) keptFor(namespace string, address netip.Addr) (Reservation, bool) {
	r, is := a.reserved[address]
	return r, is && r.Namespace != namespace
}

// giveUp ends the tenant's reservations, the first to end first, that with what it holds are more than its limit: who asks for one address
// after the other keeps no more than it may have.
func (a *Allocator) giveUp(namespace string, limit *int32) {
	if limit == nil {
		return
	}
	var own []Reservation
	for _, r := range a.reserved {
		if r.Namespace == namespace {
			own = append(own, r)
		}
	}
	slices.SortFunc(own, func(x, y Reservation) int { return cmp.Or(x.Until.Compare(y.Until), x.Address.Compare(y.Address)) })
	for beyond := len(own) + len(addressesOf(a.held[namespace])) - int(*limit); beyond > 0 && len(own) > 0; beyond-- {
		delete(a.reserved, own[0].Address)
		own = own[1:]
	}
}
