package driver

import (
	"context"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// batchCost bounds one change, in records, endpoints and rows: it takes about a tenth of a second. Elections and other tenants' changes come
// between. Before the dataplane has held everything there are none that wait, and larger batches are sooner through.
const (
	batchCost      = 500
	firstBatchCost = 4000
)

// syncing is under way from the time when the difference to what the dataplane holds is known until it was sent all of that, or its process has ended.
type syncing struct {
	// until is the number of the difference in the backlog, version that of LoadBalancers which it leads to.
	until, version uint64
	records, sent  int
}

// enqueue adds the delta to the backlog. It leads on from the model at the version before.
func (d *Driver) enqueue(delta model.Delta, before uint64) {
	if delta.Empty() {
		return
	}
	accepted, refused := d.supported(delta)
	accepted, late := d.quarantine.without(accepted, model.NewDigests(), time.Now())
	d.backlog.Add(accepted, before)
	d.note(model.Delta{}, append(refused, late...))
}

// sendBatch sends the next batch.
func (d *Driver) sendBatch(ctx context.Context) error {
	cost := batchCost
	if !d.synced {
		cost = firstBatchCost
	}
	// A dataplane that is brought to the model is sent a change even if it lacks nothing.
	if d.syncing != nil || !d.backlog.Empty() {
		if err := d.send(ctx, d.nextBatch(cost)); err != nil {
			return err
		}
	}
	if d.syncing == nil || !d.backlog.Through(d.syncing.until) {
		return nil
	}
	d.log.Info("backend in sync", "backend", d.runner.description.Name, "records", d.syncing.records, "sent", d.syncing.sent, "failed", len(d.failures))
	d.backlog.Reached(d.syncing.version)
	d.syncing, d.backoff, d.problem, d.resyncing = nil, 0, nil, false
	d.synced = true
	if d.options.InSync != nil {
		d.options.InSync()
	}
	select {
	case d.purgeNow <- struct{}{}:
	default:
	}
	return nil
}

// send sends a batch. A plugin that is not at its base generation is brought to the model again, but not twice in a row.
func (d *Driver) send(ctx context.Context, batch model.Delta) error {
	failed, err := d.apply(ctx, batch)
	switch {
	case isResync(err) && !d.outOfStep:
		d.outOfStep, d.resyncing = true, true
		return d.resync(ctx, 0)
	case err != nil:
		d.noteFailedBatch(ctx, batch)
		return err
	}
	d.outOfStep = false
	d.backoff = min(d.backoff, leastBackoff) // it works, and others need not wait for what ends it next
	d.quarantine.done(batch)
	d.deleteRefused(batch, failed)
	for _, key := range batch.DeleteFrontends {
		if e, is := d.unsupported[key]; is {
			failed = append(failed, e)
		}
	}
	d.note(batch, failed)
	return nil
}

// deleteRefused deletes frontends that the dataplane refuses while it holds them for another tenant.
func (d *Driver) deleteRefused(batch model.Delta, failed []dataplane.RecordError) {
	refused := map[model.FrontendKey]dataplane.RecordError{}
	for _, e := range failed {
		if e.Pool == "" {
			refused[e.Frontend] = e
		}
	}
	others := d.backlog.Trust(batch, func(key model.FrontendKey) bool { _, is := refused[key]; return is })
	if len(others) == 0 {
		return
	}
	for _, key := range others {
		d.unsupported[key] = refused[key]
	}
	end := model.Delta{DeleteFrontends: others}
	d.withdraw(end)
	d.backlog.Add(end, d.version)
}

// noteFailedBatch notes that the plugin ended by the batch, or took longer than it may: the next process is not given the same work again. A record that
// does that alone goes into quarantine.
func (d *Driver) noteFailedBatch(ctx context.Context, batch model.Delta) {
	if ctx.Err() != nil {
		return
	}
	if batch.Len() == 1 && d.backlog.Suspected(batch) {
		d.quarantine.add(postponables(batch)[0], time.Now())
	}
	d.backlog.Failed(batch)
}
