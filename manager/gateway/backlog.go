package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// syncing is under way from the time when the difference to what the dataplane holds is known until it was told all of that, or its process has ended.
type syncing struct {
	// until is the number of the difference in the backlog, version that of LoadBalancers which it leads to.
	until, version uint64
	records, sent  int
}

// take has the dataplane be told the delta, by and by, to what it was to hold at the version before.
func (g *Gateway) take(d model.Delta, before uint64) {
	if d.Empty() {
		return
	}
	accepted, refused := g.supported(d)
	accepted, late := g.postponed.without(accepted, model.NewDigests(), time.Now())
	g.backlog.Add(accepted, before)
	g.note(model.Delta{}, append(refused, late...))
}

// tell tells the dataplane the next batch.
func (g *Gateway) tell(ctx context.Context) error {
	cost := batchCost
	if !g.served {
		cost = firstBatchCost
	}
	// A dataplane that is brought to the model hears of that even if it lacks nothing.
	if g.syncing != nil || !g.backlog.Empty() {
		if err := g.deliver(ctx, g.backlog.Next(cost)); err != nil {
			return err
		}
	}
	if g.syncing == nil || !g.backlog.Through(g.syncing.until) {
		return nil
	}
	g.log.Info("backend in sync", "backend", g.host.description.Name, "records", g.syncing.records, "sent", g.syncing.sent, "failed", len(g.fails))
	g.backlog.Reached(g.syncing.version)
	g.syncing, g.backoff, g.problem, g.starting = nil, 0, nil, false
	g.programmed = true
	g.serveFiltered()
	select {
	case g.inSync <- struct{}{}:
	default:
	}
	return nil
}

// deliver sends a batch. A backend that has lost its place is brought to the model anew, but not twice in a row.
func (g *Gateway) deliver(ctx context.Context, batch model.Delta) error {
	failed, err := g.apply(ctx, batch)
	switch {
	case isResync(err) && !g.lost:
		g.lost, g.starting = true, true
		return g.resync(ctx, 0)
	case err != nil:
		g.blame(ctx, batch)
		return err
	}
	g.lost = false
	g.backoff = min(g.backoff, leastBackoff) // it works, and others need not wait for what ends it next
	g.postponed.done(batch)
	g.settle(batch, failed)
	for _, key := range batch.DeleteFrontends {
		if e, is := g.unsupported[key]; is {
			failed = append(failed, e)
		}
	}
	g.note(batch, failed)
	return nil
}

// settle has the dataplane delete frontends that it refuses where it has them for another tenant still.
func (g *Gateway) settle(batch model.Delta, failed []dataplane.RecordError) {
	refused := map[model.FrontendKey]dataplane.RecordError{}
	for _, e := range failed {
		if e.Pool == "" {
			refused[e.Frontend] = e
		}
	}
	others := g.backlog.Trust(batch, func(key model.FrontendKey) bool { _, is := refused[key]; return is })
	if len(others) == 0 {
		return
	}
	for _, key := range others {
		g.unsupported[key] = refused[key]
	}
	end := model.Delta{DeleteFrontends: others}
	g.withdraw(end)
	g.backlog.Add(end, g.flushed)
}

// blame notes that the batch had the backend end, or take longer than it may: the next process is not given the same work again. A record that
// does that by itself waits, and others go on.
func (g *Gateway) blame(ctx context.Context, batch model.Delta) {
	if ctx.Err() != nil {
		return
	}
	if batch.Len() == 1 && g.backlog.Suspected(batch) {
		g.postponed.add(postponables(batch)[0], time.Now())
	}
	g.backlog.Failed(batch)
}

// postponed are records that the dataplane is not told before a time.
type postponed map[postponable]postponement

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

func (p postponed) add(what postponable, now time.Time) {
	for other, at := range p {
		if now.Sub(at.until) > mostPostponed {
			delete(p, other)
		}
	}
	wait := min(max(2*p[what].wait, leastPostponed), mostPostponed)
	p[what] = postponement{now.Add(wait), wait}
}

// done forgets what was postponed and has gone well.
func (p postponed) done(d model.Delta) {
	if len(p) == 0 {
		return
	}
	for _, what := range postponables(d) {
		delete(p, what)
	}
}

// without takes postponed records out of a delta, and out of what the dataplane holds: there they stay as they are.
func (p postponed) without(d model.Delta, held model.Digests, now time.Time) (kept model.Delta, late []dataplane.RecordError) {
	if len(p) == 0 {
		return d, nil
	}
	waits := func(what postponable, e dataplane.RecordError) bool {
		at, is := p[what]
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

// recordsOf names the records of a delta.
func recordsOf(d model.Delta) (records []dataplane.RecordError) {
	for _, p := range d.UpsertPools {
		records = append(records, dataplane.RecordError{Pool: p.ID})
	}
	for _, f := range d.UpsertFrontends {
		records = append(records, dataplane.RecordError{Frontend: f.FrontendKey})
	}
	for _, key := range d.DeleteFrontends {
		records = append(records, dataplane.RecordError{Frontend: key})
	}
	for _, id := range d.DeletePools {
		records = append(records, dataplane.RecordError{Pool: id})
	}
	return records
}

// without is the delta without the records of another one.
func without(d, other model.Delta) model.Delta {
	is := map[string]bool{}
	for _, e := range recordsOf(other) {
		is[e.Record()] = true
	}
	d.UpsertPools = slices.DeleteFunc(slices.Clone(d.UpsertPools), func(p model.Pool) bool { return is[dataplane.RecordError{Pool: p.ID}.Record()] })
	d.UpsertFrontends = slices.DeleteFunc(slices.Clone(d.UpsertFrontends), func(f model.Frontend) bool { return is[dataplane.RecordError{Frontend: f.FrontendKey}.Record()] })
	return d
}
