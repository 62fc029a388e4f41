package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// retryFailed is how often records that the dataplane refused are sent again.
const retryFailed = 30 * time.Second

// restartLater ends the process and sets the time of the next try: at once for the first, then ever later.
func (g *Gateway) restartLater() {
	if errors.Is(g.problem, errHung) {
		g.host.kill()
		g.backoff = max(g.backoff, hungPause)
	}
	g.host.stop()
	g.retryAt = time.Now().Add(g.backoff)
	g.backoff = min(max(2*g.backoff, 250*time.Millisecond), 30*time.Second)
}

// program applies the delta; a backend that does not run, or lost its place, gets the difference to what it holds instead.
func (g *Gateway) program(ctx context.Context, d model.Delta) error {
	due := !g.retryAt.IsZero() && !time.Now().Before(g.retryAt)
	if !g.host.running() {
		if !g.retryAt.IsZero() && !due {
			return nil
		}
		g.starting = true
		defer func() { g.starting = false }()
		if err := g.host.start(ctx); err != nil {
			return err
		}
		return g.resync(ctx)
	}
	if due {
		return g.resync(ctx)
	}
	if d.Empty() {
		return nil
	}
	accepted, refused := g.supported(d)
	failed, err := g.host.apply(ctx, accepted)
	if isResync(err) {
		return g.resync(ctx)
	}
	if err != nil {
		return err
	}
	g.note(d, append(refused, failed...))
	return nil
}

func (g *Gateway) resync(ctx context.Context) error {
	want := g.hub.Snapshot()
	all := model.Delta{UpsertPools: want.Pools, UpsertFrontends: want.Frontends}
	accepted, refused := g.supported(all)
	failed, sent, err := g.host.resync(ctx, model.Snapshot{Pools: accepted.UpsertPools, Frontends: accepted.UpsertFrontends})
	if err != nil {
		return err
	}
	g.log.Info("backend in sync", "backend", g.host.description.Name, "records", len(want.Pools)+len(want.Frontends), "sent", sent, "failed", len(failed))
	g.retryAt, g.backoff, g.problem, g.served = time.Time{}, 0, nil, true
	failing := append(refused, failed...)
	g.fails = stillFailing(g.fails, failing)
	g.note(all, failing)
	select {
	case g.inSync <- struct{}{}:
	default:
	}
	return nil
}

// stillFailing are those of the failures that are among the errors.
func stillFailing(fails map[string]failure, errs []dataplane.RecordError) map[string]failure {
	still := map[string]failure{}
	for _, e := range errs {
		if f, did := fails[e.Record()]; did {
			still[e.Record()] = f
		}
	}
	return still
}

// supported keeps back what needs a feature that the backend does not have: it is refused, never half done.
func (g *Gateway) supported(d model.Delta) (model.Delta, []dataplane.RecordError) {
	var refused []dataplane.RecordError
	kept := make([]model.Frontend, 0, len(d.UpsertFrontends))
	for _, f := range d.UpsertFrontends {
		if lacking, ok := g.host.description.Lacks(f); ok {
			refused = append(refused, dataplane.RecordError{Frontend: f.FrontendKey,
				Message: fmt.Sprintf("the %s backend does not support %s", g.host.description.Name, lacking)})
			d.DeleteFrontends = append(d.DeleteFrontends, f.FrontendKey)
			continue
		}
		kept = append(kept, g.facing(f))
	}
	d.UpsertFrontends = kept
	// One that was served before is about to leave the dataplane; without this its address would still be answered for.
	g.withdraw(model.Delta{DeleteFrontends: d.DeleteFrontends, UpsertFrontends: kept})
	return d, refused
}

// note remembers which records failed, and forgets those that went well. What fails again and again is logged once.
func (g *Gateway) note(sent model.Delta, failed []dataplane.RecordError) {
	before := map[string]failure{}
	for _, e := range failed {
		before[e.Record()] = g.fails[e.Record()]
	}
	for _, p := range sent.UpsertPools {
		delete(g.fails, dataplane.RecordError{Pool: p.ID}.Record())
	}
	for _, id := range sent.DeletePools {
		delete(g.fails, dataplane.RecordError{Pool: id}.Record())
	}
	for _, f := range sent.UpsertFrontends {
		delete(g.fails, dataplane.RecordError{Frontend: f.FrontendKey}.Record())
	}
	for _, key := range sent.DeleteFrontends {
		delete(g.fails, dataplane.RecordError{Frontend: key}.Record())
	}
	for _, e := range failed {
		f := failure{message: e.Message}
		if owner, ok := g.hub.Owner(e.Frontend); ok && e.Pool == "" {
			f.owner = owner.String()
		}
		g.fails[e.Record()] = f
		if before[e.Record()] != f {
			g.log.Warn("record refused", "record", e.Record(), "reason", e.Message)
		}
	}
	if len(g.fails) > 0 && g.retryAt.IsZero() {
		g.retryAt = time.Now().Add(retryFailed)
	}
	g.announce(sent)
}

// withdraw stops to answer for addresses whose last frontend is about to leave the dataplane.
func (g *Gateway) withdraw(d model.Delta) {
	coming := map[netip.Addr]bool{}
	for _, f := range d.UpsertFrontends {
		coming[f.VIP] = true
	}
	for _, key := range d.DeleteFrontends {
		if !g.held[key] {
			continue
		}
		delete(g.held, key)
		if g.vips[key.VIP]--; g.vips[key.VIP] > 0 {
			continue
		}
		delete(g.vips, key.VIP)
		if coming[key.VIP] {
			g.between[key.VIP] = true
		} else {
			g.forget(key.VIP)
		}
	}
}

// forget ends to answer for an address that the dataplane does not hold any more.
func (g *Gateway) forget(address netip.Addr) {
	g.options.Announcer.Withdraw(address)
	delete(g.answering.answers, address)
	g.answering.handover.forget(address)
	g.answering.ring.forget(address)
}

// announce notes the addresses of frontends that the dataplane has confirmed: they may be answered for.
func (g *Gateway) announce(d model.Delta) {
	for _, f := range d.UpsertFrontends {
		_, failed := g.fails[dataplane.RecordError{Frontend: f.FrontendKey}.Record()]
		if failed || g.held[f.FrontendKey] {
			continue
		}
		g.held[f.FrontendKey] = true
		if g.vips[f.VIP]++; g.vips[f.VIP] == 1 {
			g.answering.answers[f.VIP] = g.answering.answers[f.VIP]
			g.answering.fresh = append(g.answering.fresh, f.VIP)
		}
	}
	// The dataplane has not taken what was to come in the place of others.
	for address := range g.between {
		if g.vips[address] == 0 {
			g.forget(address)
		}
	}
	clear(g.between)
}
