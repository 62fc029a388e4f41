package driver

import (
	"context"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// batchCost bounds one change, in records, endpoints and rows: it takes about a tenth of a second. Elections and changes of other tenants come in
// between. Until the dataplane has held everything once, there is nothing that would wait, and larger batches are faster.
const (
	batchCost      = 500
	firstBatchCost = 4000
)

// syncing is the state while the dataplane gets the difference to what it holds. It ends when everything of it was sent, or the process has ended.
type syncing struct {
	// until is the number of the difference in the backlog, version the version of the LoadBalancers that the difference leads to.
	until, version uint64
	records, sent  int
}

// enqueue adds the delta to the backlog. The delta starts from the model of the version before.
func (d *Driver) enqueue(delta model.Delta, before uint64) {
	if delta.Empty() {
		return
	}
	accepted, refused := d.filterSupported(delta)
	accepted, postponed := d.quarantine.without(accepted, model.NewDigests(), time.Now())
	d.backlog.Add(accepted, before)
	d.updateFailures(model.Delta{}, append(refused, postponed...))
}

// sendBatch sends the next batch.
func (d *Driver) sendBatch(ctx context.Context) error {
	cost := batchCost
	if !d.synced {
		cost = firstBatchCost
	}
	// A dataplane that is brought to the model gets a change even if it lacks nothing.
	if d.syncing != nil || !d.backlog.Empty() {
		if err := d.send(ctx, d.nextBatch(cost)); err != nil {
			return err
		}
	}
	if d.syncing == nil || !d.backlog.HasReturned(d.syncing.until) {
		return nil
	}
	d.log.Info("the dataplane is in sync", "backend", d.runner.description.Name, "records", d.syncing.records, "sent", d.syncing.sent, "failed", len(d.failures))
	d.backlog.SetVersion(d.syncing.version)
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

// send sends a batch. If the plugin is not at its base generation, it is brought to the model again, but not twice in a row.
func (d *Driver) send(ctx context.Context, batch model.Delta) error {
	failed, err := d.apply(ctx, batch)
	switch {
	case isResync(err) && !d.outOfStep:
		d.outOfStep, d.resyncing = true, true
		return d.resync(ctx, 0)
	case err != nil:
		d.handleFailedBatch(ctx, batch)
		return err
	}
	d.outOfStep = false
	d.backoff = min(d.backoff, minBackoff) // it works: after its next end it is started again soon
	d.quarantine.release(batch)
	d.deleteRefused(batch, failed)
	for _, key := range batch.DeleteFrontends {
		if e, exists := d.unsupported[key]; exists {
			failed = append(failed, e)
		}
	}
	d.updateFailures(batch, failed)
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
	deleted := d.backlog.MarkAnswered(batch, func(key model.FrontendKey) bool { _, exists := refused[key]; return exists })
	if len(deleted) == 0 {
		return
	}
	for _, key := range deleted {
		d.unsupported[key] = refused[key]
	}
	deletion := model.Delta{DeleteFrontends: deleted}
	d.withdraw(deletion)
	d.backlog.Add(deletion, d.version)
}

// handleFailedBatch notes that the plugin ended or did not answer in time because of the batch, so that the next process does not get the same batch.
// If the batch is a single suspected record, that goes into quarantine.
func (d *Driver) handleFailedBatch(ctx context.Context, batch model.Delta) {
	if ctx.Err() != nil {
		return
	}
	if batch.Len() == 1 && d.backlog.AreSuspects(batch) {
		d.quarantine.add(operationsOf(batch)[0], time.Now())
	}
	d.backlog.MarkFailed(batch)
}
