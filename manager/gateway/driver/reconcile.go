package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// retryFailed is how often records that the dataplane refused are sent again.
const retryFailed = 30 * time.Second

// reconcile brings the dataplane closer to the model by one batch. The delta starts from the model of the version before. If the plugin does not run,
// program starts it, and compares its dataplane with the model.
func (d *Driver) reconcile(ctx context.Context, delta model.Delta, before uint64) error {
	due := !d.retryAt.IsZero() && !time.Now().Before(d.retryAt)
	if !d.Running() {
		if !d.retryAt.IsZero() && !due {
			return nil
		}
		d.resyncing = true
		if err := d.runner.start(ctx); err != nil {
			return err
		}
		// The last changes may have been lost with the former process, and later ones were not sent.
		if err := d.resync(ctx, 0); err != nil {
			return err
		}
		return d.sendBatch(ctx)
	}
	d.enqueue(delta, before)
	if due {
		d.retry(before)
	}
	return d.sendBatch(ctx)
}

// retry sends the failed records again, as the model has them at the version before. It does not compare the rest of the dataplane: the failing
// records of a tenant cost others nothing. A frontend with a feature that the plugin lacks waits for another process.
func (d *Driver) retry(before uint64) {
	d.retryAt = time.Time{}
	var delta model.Delta
	for _, record := range slices.Sorted(maps.Keys(d.failures)) {
		f := d.failures[record]
		if f.record.Pool != "" {
			if p, exists := d.options.Model.Pool(f.record.Pool); exists {
				delta.UpsertPools = append(delta.UpsertPools, p)
			} else {
				delta.DeletePools = append(delta.DeletePools, f.record.Pool)
			}
			continue
		}
		frontend, exists := d.options.Model.Frontend(f.record.Frontend)
		if !exists {
			delta.DeleteFrontends = append(delta.DeleteFrontends, f.record.Frontend)
		} else if _, lacks := d.runner.description.Lacks(frontend); !lacks {
			delta.UpsertFrontends = append(delta.UpsertFrontends, frontend)
		}
	}
	d.enqueue(delta, before)
}

// resync fills the backlog with the difference to what the dataplane holds. A tenant without a record in the backlog is up to date: the dataplane
// holds everything of it up to the version before.
func (d *Driver) resync(ctx context.Context, before uint64) error {
	held, err := d.runner.queryApplied(ctx)
	if err != nil {
		return err
	}
	d.resyncFrom(held.Digests, before)
	return nil
}

func (d *Driver) resyncFrom(held model.Digests, before uint64) {
	want := d.options.Model.Snapshot()
	clear(d.unsupported)
	accepted, refused := d.filterSupported(model.Delta{UpsertPools: want.Pools, UpsertFrontends: want.Frontends})
	accepted, postponed := d.quarantine.without(accepted, held, time.Now())
	difference := model.Difference(held, model.Snapshot{Pools: accepted.UpsertPools, Frontends: accepted.UpsertFrontends})
	d.backlog.Clear()
	d.noteHeld(held, accepted, difference)
	d.syncing = &syncing{until: d.backlog.Add(difference, before), version: d.version, records: len(want.Pools) + len(want.Frontends), sent: difference.Len()}
	d.retryAt = time.Time{}
	failing := append(refused, postponed...)
	d.failures = stillFailing(d.failures, append(recordsOf(difference), failing...))
	d.updateFailures(without(accepted, difference), failing)
}

// noteHeld tells the backlog what the dataplane holds besides the records of the difference, and for which tenants.
func (d *Driver) noteHeld(held model.Digests, wanted, difference model.Delta) {
	changes := map[model.PoolID]bool{}
	for _, p := range difference.UpsertPools {
		changes[p.ID] = true
	}
	for _, p := range wanted.UpsertPools {
		if !changes[p.ID] {
			d.backlog.AddHeldPool(p)
		}
	}
	differs := map[model.FrontendKey]bool{}
	for _, f := range difference.UpsertFrontends {
		differs[f.FrontendKey] = true
	}
	for _, f := range wanted.UpsertFrontends {
		if !differs[f.FrontendKey] {
			d.backlog.AddHeld(f.FrontendKey, f.Tenant)
		}
	}
	for key := range held.Frontends {
		d.backlog.AddHeldOfUnknownTenant(key)
	}
}

// filterSupported removes frontends that need a feature which the plugin lacks: they are refused, never served in part.
func (d *Driver) filterSupported(delta model.Delta) (model.Delta, []dataplane.RecordError) {
	var refused []dataplane.RecordError
	for _, key := range delta.DeleteFrontends {
		delete(d.unsupported, key)
	}
	kept := make([]model.Frontend, 0, len(delta.UpsertFrontends))
	for _, f := range delta.UpsertFrontends {
		if lacking, ok := d.runner.description.Lacks(f); ok {
			e := dataplane.RecordError{Frontend: f.FrontendKey, Message: fmt.Sprintf("the %s backend does not support %s", d.runner.description.Name, lacking)}
			refused = append(refused, e)
			d.unsupported[f.FrontendKey] = e
			delta.DeleteFrontends = append(delta.DeleteFrontends, f.FrontendKey)
			continue
		}
		delete(d.unsupported, f.FrontendKey)
		kept = append(kept, d.withRedirect(f))
	}
	delta.UpsertFrontends = kept
	// A refused frontend that was served before leaves the dataplane, and its address must not be announced any more.
	d.withdraw(model.Delta{DeleteFrontends: delta.DeleteFrontends, UpsertFrontends: kept})
	return delta, refused
}
