package nftables

import (
	"context"
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// record is the planned change of a record, and its error if it fails.
type record struct {
	plans  []planned
	failed dataplane.RecordError
}

// Apply sends the change in transactions of bounded size. A record is never split between two transactions.
func (b *Backend) Apply(_ context.Context, c dataplane.Change) (dataplane.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := &apply{backend: b, ended: newEnded()}
	for chunk := range slices.Chunk(c.UpsertPools, 1000) {
		a.each(len(chunk), func(i int) (record, error) {
			plans, err := b.checkAndPlanPool(chunk[i])
			return record{plans, dataplane.RecordError{Pool: chunk[i].ID}}, err
		})
	}
	for chunk := range slices.Chunk(c.UpsertFrontends, 1000) {
		a.each(len(chunk), func(i int) (record, error) {
			plans, err := b.checkAndPlanFrontend(chunk[i])
			return record{plans, dataplane.RecordError{Frontend: chunk[i].FrontendKey}}, err
		})
	}
	a.each(len(c.DeleteFrontends), func(i int) (record, error) {
		key := c.DeleteFrontends[i]
		t := b.tableFor(key.VIP)
		return record{plansOf(t, t.state.planDeleteFrontend(key)), dataplane.RecordError{Frontend: key}}, nil
	})
	a.each(len(c.DeletePools), func(i int) (record, error) {
		return record{b.planDeletePool(c.DeletePools[i]), dataplane.RecordError{Pool: c.DeletePools[i]}}, nil
	})
	return dataplane.Result{Operations: a.operations, Failed: a.failed}, a.dropStale()
}

// apply is the state of one call of Apply.
type apply struct {
	backend    *Backend
	operations uint64
	failed     []dataplane.RecordError
	stale      map[*table]bool
	ended      ended
}

// each plans records and sends them in transactions of bounded size.
func (a *apply) each(n int, plan func(int) (record, error)) {
	var batch []record
	edits := 0
	for i := range n {
		r, err := plan(i)
		if err != nil {
			a.fail(r, err)
			continue
		}
		for _, p := range r.plans {
			edits += len(p.edits) + p.ranges.size(p.table.state.ranges)
		}
		if batch = append(batch, r); edits >= editsPerTransaction {
			a.send(batch)
			batch, edits = nil, 0
		}
	}
	a.send(batch)
}

// send sends records in one transaction. If the kernel refuses it, send bisects it to find the records that the kernel refuses.
func (a *apply) send(batch []record) {
	var plans []planned
	for _, r := range batch {
		plans = append(plans, r.plans...)
	}
	if len(plans) == 0 {
		return
	}
	err := transact(plans)
	switch {
	case err == nil:
		for _, p := range plans {
			a.operations += uint64(len(p.edits))
			a.ended.add(p.plan)
			if p.stale {
				a.markStale(p.table)
			}
		}
	case len(batch) == 1:
		a.fail(batch[0], err)
	default:
		a.send(batch[:len(batch)/2])
		a.send(batch[len(batch)/2:])
	}
}

func (a *apply) markStale(t *table) {
	if a.stale == nil {
		a.stale = map[*table]bool{}
	}
	a.stale[t] = true
}

func (a *apply) fail(r record, err error) {
	r.failed.Message = err.Error()
	a.failed = append(a.failed, r.failed)
}

func (a *apply) dropStale() error {
	for t := range a.stale {
		if err := t.dropStale(a.ended); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) tableFor(address netip.Addr) *table {
	for _, t := range b.tables {
		if t.layout.v4 == address.Is4() {
			return t
		}
	}
	return nil
}

// checkAndPlanPool plans the pool, after it has checked that this host can serve it.
func (b *Backend) checkAndPlanPool(p model.Pool) ([]planned, error) {
	for _, t := range b.tables {
		if err := t.checkPoolOnLink(p, b.egress); err != nil {
			return nil, err
		}
	}
	return b.planPool(p)
}

// checkAndPlanFrontend plans the frontend, after it has checked that this host can serve it.
func (b *Backend) checkAndPlanFrontend(f model.Frontend) ([]planned, error) {
	if f.Forwarding == model.Direct {
		if err := b.tableFor(f.VIP).checkDirect(f, b.egress); err != nil {
			return nil, err
		}
	}
	return b.planFrontend(f)
}
