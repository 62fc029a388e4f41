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

// reserve keeps what the LoadBalancer asked for by name and has, for its tenant, once it is gone; of a tenant that leaves all that it has, since its
// cluster may still think that it has it. That is on record with the pool before the LoadBalancer goes, so that a manager that starts then knows of it.
func (b *addressBook) reserve(ctx context.Context, c client.Client, lb *v1alpha1.LoadBalancer, leaves bool, now time.Time) error {
	requested, grants := convert.WithoutTargets(lb).Requested, convert.Grants(lb)
	for _, g := range grants {
		if !leaves && !slices.Contains(requested, g.Address) || !b.keep(g, lb.Namespace, leaves, now) {
			continue
		}
		var pool v1alpha1.AddressPool
		if err := b.reader.Get(ctx, client.ObjectKey{Name: g.Pool}, &pool); err != nil {
			return client.IgnoreNotFound(err)
		}
		b.mu.Lock()
		pool.Status.Reserved = onRecord(b.book.Reserved(g.Pool))
		b.mu.Unlock()
		if err := c.Status().Update(ctx, &pool); err != nil {
			return fmt.Errorf("have on record that %s is kept for its tenant: %w", g.Address, err)
		}
	}
	return nil
}

// keep reports whether the pool of a grant keeps addresses, or those of a tenant that leaves, and has this one kept.
func (b *addressBook) keep(g ipam.Grant, namespace string, leaves bool, now time.Time) bool {
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
	b.book.At(now)
	kept := b.book.Reservations()
	b.book.ReserveOf(g.Pool, v1alpha1.MaxReserved, ipam.Reservation{Address: g.Address, Namespace: namespace, Until: now.Add(period).Truncate(time.Second)})
	b.ended = b.ended || b.book.Reservations() <= kept
	return true
}

// prolong has what is kept for a tenant that leaves be kept until it has left. It is on record minutes before it would end.
func (b *addressBook) prolong(namespace string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ended, _ := b.book.At(now)
	b.ended = b.ended || ended
	for _, pool := range b.pools {
		for _, r := range b.book.Reserved(pool.Name) {
			if r.Namespace == namespace && r.Until.Sub(now) < v1alpha1.DefaultReservation/2 {
				r.Until = now.Add(v1alpha1.DefaultReservation).Truncate(time.Second)
				b.book.Reserve(r)
			}
		}
	}
}

// expire ends what is kept no longer.
func (b *addressBook) expire(now time.Time) (ended bool, next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ended, next = b.book.At(now)
	ended, b.ended = ended || b.ended, false
	return ended, next
}

func onRecord(reserved []ipam.Reservation) (out []v1alpha1.ReservedAddress) {
	for _, r := range reserved[:min(len(reserved), v1alpha1.MaxReserved)] {
		tenant, _ := translate.TenantOf(r.Namespace)
		out = append(out, v1alpha1.ReservedAddress{Address: r.Address.String(), Tenant: tenant, Until: metav1.NewTime(r.Until)})
	}
	return out
}
