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

// SendRedirects sends the frontends of the addresses again, whose redirects have changed. Frontends in the backlog get them with their batch.
func (d *Driver) SendRedirects(ctx context.Context, of map[netip.Addr]bool) {
	var delta, waiting model.Delta
	for _, f := range d.options.Model.Snapshot().Frontends {
		switch {
		case !of[f.VIP]:
		case d.backlog.Has(f.FrontendKey):
			waiting.UpsertFrontends = append(waiting.UpsertFrontends, f)
		case d.held[f.FrontendKey]:
			delta.UpsertFrontends = append(delta.UpsertFrontends, f)
		}
	}
	d.enqueue(waiting, d.version)
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
