package driver

import (
	"context"
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// withRedirect is the frontend as the dataplane is sent it: with a redirect where that makes sense and the plugin can do it.
func (d *Driver) withRedirect(f model.Frontend) model.Frontend {
	if f.Protocol == model.TCP && f.Forwarding == model.NAT && slices.Contains(d.runner.description.Features, dataplane.Handover) {
		f.Handover = d.options.Redirect(f.VIP)
	}
	return f
}

// nextBatch is what the dataplane is sent next. Its frontends have the redirects of now: these may have changed since they entered the backlog.
func (d *Driver) nextBatch(cost int) model.Delta {
	batch := d.backlog.Next(cost)
	for i, f := range batch.UpsertFrontends {
		batch.UpsertFrontends[i] = d.withRedirect(f)
	}
	return batch
}

// SendRedirects sends the frontends of the addresses again, whose redirects have changed. Frontends in the backlog get them with their batch.
func (d *Driver) SendRedirects(ctx context.Context, of map[netip.Addr]bool) {
	var delta model.Delta
	for address := range of {
		for key := range d.held.of[address] {
			if f, is := d.options.Model.Frontend(key); is && !d.backlog.Has(key) {
				delta.UpsertFrontends = append(delta.UpsertFrontends, f)
			}
		}
	}
	slices.SortFunc(delta.UpsertFrontends, func(a, b model.Frontend) int { return a.FrontendKey.Compare(b.FrontendKey) })
	d.log.Debug("redirects unknown connections to other gateways than before", "frontends", len(delta.UpsertFrontends), "addresses", len(of))
	accepted, _ := d.supported(delta)
	for chunk := range slices.Chunk(accepted.UpsertFrontends, batchCost) {
		if err := d.send(ctx, model.Delta{UpsertFrontends: chunk}); err != nil {
			d.log.Error("hand over connections", "error", err)
			d.fail(err)
			return
		}
	}
}
