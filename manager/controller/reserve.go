package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
)

// reserve reserves the requested addresses of a deleted LoadBalancer for its tenant. If the Tenant is being deleted, it reserves all addresses, since the
// tenant cluster may still use them. It writes the reservation into the status of the AddressPool before the LoadBalancer is gone, so that it
// survives a restart.
func (b *addressAllocator) reserve(ctx context.Context, c client.Client, lb *v1alpha1.LoadBalancer, leaves bool, now time.Time) error {
	requested, allocations := convert.WithoutTargets(lb).Requested, convert.Allocations(lb)
	for _, g := range allocations {
		if !leaves && !slices.Contains(requested, g.Address) || !b.reserveAddress(g, lb.Namespace, leaves, now) {
			continue
		}
		var pool v1alpha1.AddressPool
		if err := b.reader.Get(ctx, client.ObjectKey{Name: g.Pool}, &pool); err != nil {
			return client.IgnoreNotFound(err)
		}
		b.mu.Lock()
		pool.Status.Reserved = reservedAddresses(b.allocator.ReservationsOf(g.Pool))
		b.mu.Unlock()
		if err := c.Status().Update(ctx, &pool); err != nil {
			return fmt.Errorf("write the reservation of %s into the status of AddressPool %s: %w", g.Address, g.Pool, err)
		}
	}
	return nil
}

// reserveAddress reserves one address, and reports whether its AddressPool reserves addresses. leaves: the Tenant is being deleted.
func (b *addressAllocator) reserveAddress(g ipam.Allocation, namespace string, leaves bool, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.pools, func(p ipam.Pool) bool { return p.Name == g.Pool })
	if i < 0 {
		return false
	}
	period := b.pools[i].ReserveFor
	if leaves {
		period = max(period, v1alpha1.DefaultReservation)
	}
	if period <= 0 {
		return false
	}
	b.allocator.SetTime(now)
	kept := b.allocator.CountReservations()
	b.allocator.ReserveWithin(g.Pool, v1alpha1.MaxReserved, ipam.Reservation{Address: g.Address, Namespace: namespace, Until: now.Add(period).Truncate(time.Second)})
	b.reservationEnded = b.reservationEnded || b.allocator.CountReservations() <= kept
	return true
}

// extendReservations extends the reservations of a Tenant that is being deleted. It does so minutes before they would end.
func (b *addressAllocator) extendReservations(namespace string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ended, _ := b.allocator.SetTime(now)
	b.reservationEnded = b.reservationEnded || ended
	for _, pool := range b.pools {
		for _, r := range b.allocator.ReservationsOf(pool.Name) {
			if r.Namespace == namespace && r.Until.Sub(now) < v1alpha1.DefaultReservation/2 {
				r.Until = now.Add(v1alpha1.DefaultReservation).Truncate(time.Second)
				b.allocator.Reserve(r)
			}
		}
	}
}

// expire removes reservations that have ended, and returns when the next one ends.
func (b *addressAllocator) expire(now time.Time) (ended bool, next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ended, next = b.allocator.SetTime(now)
	ended, b.reservationEnded = ended || b.reservationEnded, false
	return ended, next
}

func reservedAddresses(reserved []ipam.Reservation) (out []v1alpha1.ReservedAddress) {
	for _, r := range reserved[:min(len(reserved), v1alpha1.MaxReserved)] {
		tenant, _ := translate.TenantOf(r.Namespace)
		out = append(out, v1alpha1.ReservedAddress{Address: r.Address.String(), Tenant: tenant, Until: metav1.NewTime(r.Until)})
	}
	return out
}
