package driver

import (
	"context"
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// withRedirect returns the frontend with its redirect, if the mode of forwarding and the plugin allow one.
func (d *Driver) withRedirect(f model.Frontend) model.Frontend {
	if f.Protocol == model.TCP && f.Forwarding == model.NAT && slices.Contains(d.runner.description.Features, dataplane.Redirects) {
		f.Redirect = d.options.Redirect(f.VIP)
	}
	return f
}

// nextBatch returns the next batch to send. Its frontends get their present redirects, which may have changed since the frontends entered the
// backlog.
func (d *Driver) nextBatch(cost int) model.Delta {
	batch := d.backlog.Next(cost)
	for i, f := range batch.UpsertFrontends {
		batch.UpsertFrontends[i] = d.withRedirect(f)
	}
	return batch
}

// SendRedirects sends the frontends of addresses with a changed redirect. Frontends in the backlog get the redirect with their batch.
func (d *Driver) SendRedirects(ctx context.Context, addresses map[netip.Addr]bool) {
	var delta model.Delta
	for address := range addresses {
		for key := range d.held.byAddress[address] {
			if f, exists := d.options.Model.Frontend(key); exists && !d.backlog.Has(key) {
				delta.UpsertFrontends = append(delta.UpsertFrontends, f)
			}
		}
	}
	slices.SortFunc(delta.UpsertFrontends, func(a, b model.Frontend) int { return a.FrontendKey.Compare(b.FrontendKey) })
	d.log.Debug("send changed redirects", "frontends", len(delta.UpsertFrontends), "addresses", len(addresses))
	accepted, _ := d.filterSupported(delta)
	for chunk := range slices.Chunk(accepted.UpsertFrontends, batchCost) {
		if err := d.send(ctx, model.Delta{UpsertFrontends: chunk}); err != nil {
			d.log.Error("send changed redirects", "error", err)
			d.fail(err)
			return
		}
	}
}
