package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Reservation keeps an address that was requested by name for the tenant that had it. So a Service that is deleted and created again gets its
// address back, and no other tenant that waits for it does.
type Reservation struct {
	Address netip.Addr
	// Namespace is the namespace of the tenant, with which the names of its owners begin.
	Namespace string
	Until     time.Time
}

// Reserve reserves the address. A later reservation replaces an earlier one.
func (a *Allocator) Reserve(r Reservation) {
	if r.Until.After(a.now) {
		a.reserved[r.Address] = r
	}
}

// ReserveWithin is Reserve for an address of a pool that has room for so many reservations. If there is no room, it ends a reservation of the tenant
// that has most: the one that would end first. So a tenant that requests one address after the other takes no room of other tenants.
func (a *Allocator) ReserveWithin(poolName string, room int, r Reservation) {
	a.Reserve(r)
	reserved := a.ReservationsOf(poolName)
	if len(reserved) <= room {
		return
	}
	count := map[string]int{}
	for _, r := range reserved {
		count[r.Namespace]++
	}
	slices.SortFunc(reserved, func(x, y Reservation) int {
		return cmp.Or(cmp.Compare(count[y.Namespace], count[x.Namespace]), cmp.Compare(x.Namespace, y.Namespace), x.Until.Compare(y.Until), x.Address.Compare(y.Address))
	})
	delete(a.reserved, reserved[0].Address)
}

// SetTime sets the time of the allocator. It reports whether that ended a reservation, and when the next reservation ends, if there is one.
func (a *Allocator) SetTime(now time.Time) (ended bool, next time.Time) {
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

// ReservationsOf returns the reservations of addresses of the pool, sorted by address.
func (a *Allocator) ReservationsOf(poolName string) (out []Reservation) {
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

// CountReservations returns the number of all reservations.
func (a *Allocator) CountReservations() int { return len(a.reserved) }

// reservedForOther reports whether the address is reserved for a tenant with another namespace.
func (a *Allocator) reservedForOther(namespace string, address netip.Addr) (Reservation, bool) {
	r, found := a.reserved[address]
	return r, found && r.Namespace != namespace
}

// trimReservations ends reservations of a tenant whose addresses and reservations together exceed its limit of addresses, those that would end
// first before others. So a tenant that requests one address after the other has no more addresses, with those reserved for it, than its limit.
func (a *Allocator) trimReservations(namespace string, limit *int32) {
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
	for excess := len(own) + len(addressesOf(a.held[namespace])) - int(*limit); excess > 0 && len(own) > 0; excess-- {
		delete(a.reserved, own[0].Address)
		own = own[1:]
	}
}
