package driver

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// quarantine are operations that wait for a time, because they made the plugin end or hang.
type quarantine map[operation]wait

// operation sets or deletes a record. It includes the tenant: the next tenant with the same address does not wait for it, and a record that could not
// be set may be deleted.
type operation struct {
	tenant, record string
	deletes        bool
}

type wait struct {
	until  time.Time
	length time.Duration
}

// The wait doubles with each failure.
const (
	minQuarantine = 2 * time.Minute
	maxQuarantine = time.Hour
)

func (q quarantine) add(op operation, now time.Time) {
	for other, at := range q {
		if now.Sub(at.until) > maxQuarantine {
			delete(q, other)
		}
	}
	length := min(max(2*q[op].length, minQuarantine), maxQuarantine)
	q[op] = wait{now.Add(length), length}
}

// release removes the operations of a delta that succeeded.
func (q quarantine) release(d model.Delta) {
	if len(q) == 0 {
		return
	}
	for _, op := range operationsOf(d) {
		delete(q, op)
	}
}

// without removes waiting operations from a delta, and their records from held, so that these records stay as they are in the dataplane.
func (q quarantine) without(d model.Delta, held model.Digests, now time.Time) (kept model.Delta, postponed []dataplane.RecordError) {
	if len(q) == 0 {
		return d, nil
	}
	postpone := func(op operation, e dataplane.RecordError) bool {
		at, exists := q[op]
		if !exists || !now.Before(at.until) {
			return false
		}
		e.Message = fmt.Sprintf("the plugin ended or did not answer twice when it was sent this record; it is sent again after %s UTC", at.until.UTC().Format(time.TimeOnly))
		postponed = append(postponed, e)
		return true
	}
	kept.UpsertPools = slices.DeleteFunc(slices.Clone(d.UpsertPools), func(o model.Pool) bool {
		if !postpone(setPoolOp(o), dataplane.RecordError{Pool: o.ID}) {
			return false
		}
		delete(held.Pools, o.ID)
		return true
	})
	kept.UpsertFrontends = slices.DeleteFunc(slices.Clone(d.UpsertFrontends), func(f model.Frontend) bool {
		if !postpone(setFrontendOp(f), dataplane.RecordError{Frontend: f.FrontendKey}) {
			return false
		}
		delete(held.Frontends, f.FrontendKey)
		return true
	})
	postponePool := func(id model.PoolID) bool { return postpone(deletePoolOp(id), dataplane.RecordError{Pool: id}) }
	postponeFrontend := func(key model.FrontendKey) bool {
		return postpone(deleteFrontendOp(key), dataplane.RecordError{Frontend: key})
	}
	kept.DeletePools = slices.DeleteFunc(slices.Clone(d.DeletePools), postponePool)
	kept.DeleteFrontends = slices.DeleteFunc(slices.Clone(d.DeleteFrontends), postponeFrontend)
	wanted := model.NewDigests()
	for _, o := range kept.UpsertPools {
		wanted.Pools[o.ID] = ""
	}
	for _, f := range kept.UpsertFrontends {
		wanted.Frontends[f.FrontendKey] = ""
	}
	maps.DeleteFunc(held.Pools, func(id model.PoolID, _ model.Digest) bool {
		_, exists := wanted.Pools[id]
		return !exists && postponePool(id)
	})
	maps.DeleteFunc(held.Frontends, func(key model.FrontendKey, _ model.Digest) bool {
		_, exists := wanted.Frontends[key]
		return !exists && postponeFrontend(key)
	})
	return kept, postponed
}

func setPoolOp(p model.Pool) operation {
	return operation{p.Tenant, dataplane.RecordError{Pool: p.ID}.Record(), false}
}

func setFrontendOp(f model.Frontend) operation {
	return operation{f.Tenant, dataplane.RecordError{Frontend: f.FrontendKey}.Record(), false}
}

func deletePoolOp(id model.PoolID) operation {
	return operation{id.Tenant(), dataplane.RecordError{Pool: id}.Record(), true}
}

// deleteFrontendOp has no tenant: a deleted frontend belongs to nobody.
func deleteFrontendOp(key model.FrontendKey) operation {
	return operation{"", dataplane.RecordError{Frontend: key}.Record(), true}
}

// operationsOf returns the operations of a delta.
func operationsOf(d model.Delta) (all []operation) {
	for _, p := range d.UpsertPools {
		all = append(all, setPoolOp(p))
	}
	for _, f := range d.UpsertFrontends {
		all = append(all, setFrontendOp(f))
	}
	for _, key := range d.DeleteFrontends {
		all = append(all, deleteFrontendOp(key))
	}
	for _, id := range d.DeletePools {
		all = append(all, deletePoolOp(id))
	}
	return all
}
