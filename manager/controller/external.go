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

// usedAddresses are what no pool may cover.
type usedAddresses interface {
	usedByHosts(ctx context.Context) (translate.Used, error)
	// usedByTargets is of those in the ranges, while the external ones are external.
	usedByTargets(ctx context.Context, external, ranges []ipam.Range) (translate.Used, error)
}

// judged are the pools as they stand, the oldest first, with what is wrong with them.
type judged struct {
	pools []ipam.Pool
	// external are the ranges of each pool that no target may lie in.
	external map[string][]ipam.Range
	// bad are pools that give no address, skipped names the addresses that the others leave out, which hosts have.
	bad     map[string]translate.Problem
	skipped map[string][]string
	hosts   translate.Used
}

// judge finds out which pools may give addresses. A pool whose ranges are external covers no used address, whatever is listed later: who was there
// first is not harmed. Of two that overlap the older one counts.
func (b *addressBook) judge(ctx context.Context, items []v1alpha1.AddressPool) (judged, error) {
	slices.SortFunc(items, func(x, y v1alpha1.AddressPool) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	j := judged{external: map[string][]ipam.Range{}, bad: map[string]translate.Problem{}, skipped: map[string][]string{}}
	var external []ipam.Range
	for i := range items {
		if before := convert.External(&items[i]); len(before) > 0 {
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
	return j, b.keepFromUsed(ctx, &j, external)
}

// keepFromUsed suspends pools that would cover addresses which are used, and has the others be external.
func (b *addressBook) keepFromUsed(ctx context.Context, j *judged, external []ipam.Range) (err error) {
	isFresh := func(p ipam.Pool) bool {
		_, bad := j.bad[p.Name]
		return !bad && !slices.Equal(j.external[p.Name], p.Ranges)
	}
	var targets translate.Used
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
