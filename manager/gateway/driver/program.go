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

// retryFailed is how often records that the dataplane refused are sent again, and no others.
const retryFailed = 30 * time.Second

// program brings the dataplane closer to the model by one batch. The delta leads to the model from the version before. A plugin that does not run is
// started, and its dataplane is compared with the model.
func (d *Driver) program(ctx context.Context, delta model.Delta, before uint64) error {
	due := !d.retryAt.IsZero() && !time.Now().Before(d.retryAt)
	if !d.Running() {
		if !d.retryAt.IsZero() && !due {
			return nil
		}
		d.resyncing = true
		if err := d.runner.start(ctx); err != nil {
			return err
		}
		// What the former process was sent last may have come to nothing, and nobody was sent what came since.
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

// retry sends the records again that failed, as the model has them at the version before. The rest of the dataplane is not compared: that a tenant's
// records fail costs nobody else anything. A frontend whose feature the plugin lacks is not sent before there is another process.
func (d *Driver) retry(before uint64) {
	d.retryAt = time.Time{}
	var delta model.Delta
	for _, record := range slices.Sorted(maps.Keys(d.failures)) {
		f := d.failures[record]
		if f.of.Pool != "" {
			if p, is := d.options.Model.Pool(f.of.Pool); is {
				delta.UpsertPools = append(delta.UpsertPools, p)
			} else {
				delta.DeletePools = append(delta.DeletePools, f.of.Pool)
			}
			continue
		}
		frontend, is := d.options.Model.Frontend(f.of.Frontend)
		if !is {
			delta.DeleteFrontends = append(delta.DeleteFrontends, f.of.Frontend)
		} else if _, lacks := d.runner.description.Lacks(frontend); !lacks {
			delta.UpsertFrontends = append(delta.UpsertFrontends, frontend)
		}
	}
	d.enqueue(delta, before)
}

// resync fills the backlog with the difference to what the dataplane holds. For a tenant without a record in the backlog the dataplane holds
// everything up to the version before.
func (d *Driver) resync(ctx context.Context, before uint64) error {
	held, err := d.runner.applied(ctx)
	if err != nil {
		return err
	}
	d.resyncFrom(held.Digests, before)
	return nil
}

func (d *Driver) resyncFrom(held model.Digests, before uint64) {
	want := d.options.Model.Snapshot()
	clear(d.unsupported)
	accepted, refused := d.supported(model.Delta{UpsertPools: want.Pools, UpsertFrontends: want.Frontends})
	accepted, late := d.quarantine.without(accepted, held, time.Now())
	difference := model.Difference(held, model.Snapshot{Pools: accepted.UpsertPools, Frontends: accepted.UpsertFrontends})
	d.backlog.Clear()
	d.noteHeld(held, accepted, difference)
	d.syncing = &syncing{until: d.backlog.Add(difference, before), version: d.version, records: len(want.Pools) + len(want.Frontends), sent: difference.Len()}
	d.retryAt = time.Time{}
	failing := append(refused, late...)
	d.failures = stillFailing(d.failures, append(recordsOf(difference), failing...))
	d.note(without(accepted, difference), failing)
}

// noteHeld tells the backlog what the dataplane holds, and for which tenant, where the difference to the model does not name it.
func (d *Driver) noteHeld(held model.Digests, wanted, difference model.Delta) {
	changes := map[model.PoolID]bool{}
	for _, p := range difference.UpsertPools {
		changes[p.ID] = true
	}
	for _, p := range wanted.UpsertPools {
		if !changes[p.ID] {
			d.backlog.HoldsPool(p)
		}
	}
	differs := map[model.FrontendKey]bool{}
	for _, f := range difference.UpsertFrontends {
		differs[f.FrontendKey] = true
	}
	for _, f := range wanted.UpsertFrontends {
		if !differs[f.FrontendKey] {
			d.backlog.Holds(f.FrontendKey, f.Tenant)
		}
	}
	for key := range held.Frontends {
		d.backlog.HoldsUnknown(key)
	}
}

// supported keeps back frontends that need a feature which the plugin lacks: they are refused, never served in part.
func (d *Driver) supported(delta model.Delta) (model.Delta, []dataplane.RecordError) {
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
	// A frontend that was served before is about to leave the dataplane. Without this its address would still be announced.
	d.withdraw(model.Delta{DeleteFrontends: delta.DeleteFrontends, UpsertFrontends: kept})
	return delta, refused
}
