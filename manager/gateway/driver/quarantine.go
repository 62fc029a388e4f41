package driver

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// quarantine are records that the dataplane is not sent before a time.
type quarantine map[postponable]postponement

// postponable is what is done with a record, of the tenant that has it: another one that has the address later has done nothing, and what could not
// be changed may be deleted.
type postponable struct {
	tenant, record string
	deletes        bool
}

type postponement struct {
	until time.Time
	wait  time.Duration
}

// A record waits for longer each time.
const (
	leastPostponed = 2 * time.Minute
	mostPostponed  = time.Hour
)

func (q quarantine) add(what postponable, now time.Time) {
	for other, at := range q {
		if now.Sub(at.until) > mostPostponed {
			delete(q, other)
		}
	}
	wait := min(max(2*q[what].wait, leastPostponed), mostPostponed)
	q[what] = postponement{now.Add(wait), wait}
}

// done forgets what was postponed and has gone well.
func (q quarantine) done(d model.Delta) {
	if len(q) == 0 {
		return
	}
	for _, what := range postponables(d) {
		delete(q, what)
	}
}

// without takes postponed records out of a delta, and out of what the dataplane holds: there they stay as they are.
func (q quarantine) without(d model.Delta, held model.Digests, now time.Time) (kept model.Delta, late []dataplane.RecordError) {
	if len(q) == 0 {
		return d, nil
	}
	waits := func(what postponable, e dataplane.RecordError) bool {
		at, is := q[what]
		if !is || !now.Before(at.until) {
			return false
		}
		e.Message = fmt.Sprintf("the backend ended, or did not answer, when it was told of this record, twice; it is told again after %s", at.until.UTC().Format(time.TimeOnly))
		late = append(late, e)
		return true
	}
	kept.UpsertPools = slices.DeleteFunc(slices.Clone(d.UpsertPools), func(o model.Pool) bool {
		if !waits(setsPool(o), dataplane.RecordError{Pool: o.ID}) {
			return false
		}
		delete(held.Pools, o.ID)
		return true
	})
	kept.UpsertFrontends = slices.DeleteFunc(slices.Clone(d.UpsertFrontends), func(f model.Frontend) bool {
		if !waits(setsFrontend(f), dataplane.RecordError{Frontend: f.FrontendKey}) {
			return false
		}
		delete(held.Frontends, f.FrontendKey)
		return true
	})
	goes := func(id model.PoolID) bool { return waits(deletesPool(id), dataplane.RecordError{Pool: id}) }
	ends := func(key model.FrontendKey) bool {
		return waits(deletesFrontend(key), dataplane.RecordError{Frontend: key})
	}
	kept.DeletePools = slices.DeleteFunc(slices.Clone(d.DeletePools), goes)
	kept.DeleteFrontends = slices.DeleteFunc(slices.Clone(d.DeleteFrontends), ends)
	wanted := model.NewDigests()
	for _, o := range kept.UpsertPools {
		wanted.Pools[o.ID] = ""
	}
	for _, f := range kept.UpsertFrontends {
		wanted.Frontends[f.FrontendKey] = ""
	}
	maps.DeleteFunc(held.Pools, func(id model.PoolID, _ model.Digest) bool { _, is := wanted.Pools[id]; return !is && goes(id) })
	maps.DeleteFunc(held.Frontends, func(key model.FrontendKey, _ model.Digest) bool {
		_, is := wanted.Frontends[key]
		return !is && ends(key)
	})
	return kept, late
}

func setsPool(p model.Pool) postponable {
	return postponable{p.Tenant, dataplane.RecordError{Pool: p.ID}.Record(), false}
}

func setsFrontend(f model.Frontend) postponable {
	return postponable{f.Tenant, dataplane.RecordError{Frontend: f.FrontendKey}.Record(), false}
}

func deletesPool(id model.PoolID) postponable {
	return postponable{id.Tenant(), dataplane.RecordError{Pool: id}.Record(), true}
}

// deletesFrontend names no tenant: a frontend is deleted where nobody has it, whoever had it.
func deletesFrontend(key model.FrontendKey) postponable {
	return postponable{"", dataplane.RecordError{Frontend: key}.Record(), true}
}

// postponables are what a delta does.
func postponables(d model.Delta) (all []postponable) {
	for _, p := range d.UpsertPools {
		all = append(all, setsPool(p))
	}
	for _, f := range d.UpsertFrontends {
		all = append(all, setsFrontend(f))
	}
	for _, key := range d.DeleteFrontends {
		all = append(all, deletesFrontend(key))
	}
	for _, id := range d.DeletePools {
		all = append(all, deletesPool(id))
	}
	return all
}
