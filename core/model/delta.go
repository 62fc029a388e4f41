package model

import (
	"cmp"
	"slices"
)

// Delta is the difference between two models. Its parts are applied in the order of its fields, so that a frontend
// never names a pool that does not exist.
type Delta struct {
	UpsertPools     []Pool
	UpsertFrontends []Frontend
	DeleteFrontends []FrontendKey
	DeletePools     []PoolID
}

// Empty reports whether no record changes.
func (d Delta) Empty() bool {
	return len(d.UpsertPools)+len(d.UpsertFrontends)+len(d.DeleteFrontends)+len(d.DeletePools) == 0
}

// Len is the number of records that change.
func (d Delta) Len() int {
	return len(d.UpsertPools) + len(d.UpsertFrontends) + len(d.DeleteFrontends) + len(d.DeletePools)
}

// Difference returns the delta from the records with the digests have to the snapshot want, in canonical order.
func Difference(have Digests, want Snapshot) Delta {
	want = want.Canonical()
	var d Delta
	wanted := NewDigests()
	for _, p := range want.Pools {
		wanted.Pools[p.ID] = p.Digest()
		if have.Pools[p.ID] != wanted.Pools[p.ID] {
			d.UpsertPools = append(d.UpsertPools, p)
		}
	}
	for _, f := range want.Frontends {
		wanted.Frontends[f.FrontendKey] = f.Digest()
		if have.Frontends[f.FrontendKey] != wanted.Frontends[f.FrontendKey] {
			d.UpsertFrontends = append(d.UpsertFrontends, f)
		}
	}
	for key := range have.Frontends {
		if _, ok := wanted.Frontends[key]; !ok {
			d.DeleteFrontends = append(d.DeleteFrontends, key)
		}
	}
	for id := range have.Pools {
		if _, ok := wanted.Pools[id]; !ok {
			d.DeletePools = append(d.DeletePools, id)
		}
	}
	slices.SortFunc(d.DeleteFrontends, FrontendKey.Compare)
	slices.SortFunc(d.DeletePools, func(a, b PoolID) int { return cmp.Compare(a, b) })
	return d
}
