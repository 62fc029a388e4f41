package gateway

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// withRedirect is the frontend as the dataplane is sent it: with a redirect where that makes sense and the backend can do it.
func (g *Gateway) withRedirect(f model.Frontend) model.Frontend {
	if f.Protocol == model.TCP && f.Forwarding == model.NAT && slices.Contains(g.host.description.Features, dataplane.Handover) {
		f.Handover = g.answering.redirects.Send(f.VIP)
	}
	return f
}

// applyRedirects sends the dataplane the redirects that have changed, before anything is claimed by them.
func (g *Gateway) applyRedirects(ctx context.Context) {
	a := &g.answering
	a.pending.Add(a.redirects.Update(a.member.Others(), a.answers, time.Now())...)
	switch {
	case !g.host.running():
		a.pending.Clear() // a backend that does not run is sent all of it later
		return
	case a.pending.Empty() || g.host.calling != nil:
		return // a backend that is called is sent it after its answer
	}
	of := a.pending.Begin()
	defer a.pending.End()
	var d, waiting model.Delta
	for _, f := range g.hub.Snapshot().Frontends {
		switch {
		case !of[f.VIP]:
		case g.backlog.Has(f.FrontendKey):
			waiting.UpsertFrontends = append(waiting.UpsertFrontends, f)
		case g.held[f.FrontendKey]:
			d.UpsertFrontends = append(d.UpsertFrontends, f)
		}
	}
	g.take(waiting, g.flushed)
	g.log.Debug("redirects unknown connections to other gateways than before", "frontends", len(d.UpsertFrontends), "addresses", len(of))
	accepted, _ := g.supported(d)
	for chunk := range slices.Chunk(accepted.UpsertFrontends, batchCost) {
		if err := g.deliver(ctx, model.Delta{UpsertFrontends: chunk}); err != nil {
			g.log.Error("hand over connections", "error", err)
			g.problem = err
			g.restartLater()
			return
		}
	}
}

// redirectPatience is for how long an address is not claimed because the dataplane does not have its redirect yet.
const redirectPatience = 10 * time.Second

// awaitsRedirect tells whether an address is not to be claimed yet, since the dataplane is about to get its redirect.
func (g *Gateway) awaitsRedirect(address netip.Addr) bool {
	if !g.answering.pending.Has(address) {
		return false
	}
	c := g.host.calling
	return c != nil && time.Since(c.began) < redirectPatience
}
