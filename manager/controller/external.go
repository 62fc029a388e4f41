package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
)

// usedAddresses finds the addresses that no AddressPool may cover.
type usedAddresses interface {
	usedByHosts(ctx context.Context) (translate.UsedAddresses, error)
	// usedByTargets returns the targets in the ranges. Targets in external ranges do not count.
	usedByTargets(ctx context.Context, external, ranges []ipam.Range) (translate.UsedAddresses, error)
}

// poolState has all AddressPools, the oldest first, and their problems.
type poolState struct {
	pools []ipam.Pool
	// external are the external ranges of each AddressPool. They contain no allowed target.
	external map[string][]ipam.Range
	// bad are the AddressPools of which no address is allocated, with the reason. skipped are the addresses of the others that hosts have, and that are not
	// allocated.
	bad     map[string]translate.Problem
	skipped map[string][]string
	hosts   translate.UsedAddresses
}

// evaluate finds the AddressPools of which addresses may be allocated. Once its ranges are external, an AddressPool stays usable, whatever tenants list
// later. If two overlap, only the older one is usable.
func (b *addressAllocator) evaluate(ctx context.Context, items []v1alpha1.AddressPool) (poolState, error) {
	slices.SortFunc(items, func(x, y v1alpha1.AddressPool) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	j := poolState{external: map[string][]ipam.Range{}, bad: map[string]translate.Problem{}, skipped: map[string][]string{}}
	var external []ipam.Range
	for i := range items {
		if before := convert.ExternalRanges(&items[i]); len(before) > 0 {
			j.external[items[i].Name] = before
			external = append(external, before...)
		}
		pool, err := convert.Pool(&items[i])
		if err != nil {
			j.bad[items[i].Name] = translate.Problem{Reason: "Invalid", Message: err.Error()}
			continue
		}
		j.pools = append(j.pools, pool)
	}
	for _, o := range ipam.Overlaps(j.pools) {
		j.bad[o.Pool] = translate.Problem{Reason: "Overlap", Message: fmt.Sprintf("overlaps AddressPool %s at %s: it gives no address until one of them is changed", o.Other, o.Addresses)}
	}
	return j, b.suspendCovering(ctx, &j, external)
}

// suspendCovering suspends changed AddressPools that cover used addresses, and makes the ranges of the others external.
func (b *addressAllocator) suspendCovering(ctx context.Context, j *poolState, external []ipam.Range) (err error) {
	isFresh := func(p ipam.Pool) bool {
		_, bad := j.bad[p.Name]
		return !bad && !slices.Equal(j.external[p.Name], p.Ranges)
	}
	var targets translate.UsedAddresses
	if b.used != nil {
		if j.hosts, err = b.used.usedByHosts(ctx); err != nil {
			return err
		}
		var fresh []ipam.Range
		for _, pool := range j.pools {
			if isFresh(pool) {
				fresh = append(fresh, pool.Ranges...)
			}
		}
		if len(fresh) > 0 {
			if targets, err = b.used.usedByTargets(ctx, external, fresh); err != nil {
				return err
			}
		}
	}
	for i, pool := range j.pools {
		fresh, covered := isFresh(pool), j.hosts.In(pool.Ranges)
		if !fresh {
			j.skipped[pool.Name] = covered
			continue
		}
		if covered = append(covered, targets.In(pool.Ranges)...); len(covered) > 0 {
			j.bad[pool.Name], j.pools[i].Suspended = translate.CoversUsed(covered), true
			continue
		}
		j.external[pool.Name] = pool.Ranges
	}
	return nil
}
