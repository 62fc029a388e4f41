package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// batchCost bounds what the dataplane is told at once, in records, endpoints and rows: a tenth of a second or some. Elections and other tenants'
// changes come between. Before the dataplane has held everything there are none to wait, and fewer batches are sooner through.
const (
	batchCost      = 500
	firstBatchCost = 4000
)

// retryFailed is how often records that the dataplane refused are sent again, and no others.
const retryFailed = 30 * time.Second

// leastBackoff is how long a backend that ends is left alone at least, from its second end on.
const leastBackoff = 250 * time.Millisecond

// restartLater ends the process and sets the time of the next try: at once for the first, then ever later.
func (g *Gateway) restartLater() {
	if errors.Is(g.problem, errHung) {
		g.host.kill()
		g.backoff = max(g.backoff, hungPause)
	}
	g.host.stop()
	g.syncing = nil
	g.retryAt = time.Now().Add(g.backoff)
	g.backoff = min(max(2*g.backoff, leastBackoff), 30*time.Second)
}

// program brings the dataplane closer to the model by one batch. The delta is to what it was to hold at the version before; a backend that does
// not run is brought to the model anew.
func (g *Gateway) program(ctx context.Context, d model.Delta, before uint64) error {
	due := !g.retryAt.IsZero() && !time.Now().Before(g.retryAt)
	if !g.host.running() {
		if !g.retryAt.IsZero() && !due {
			return nil
		}
		g.starting = true
		if err := g.host.start(ctx); err != nil {
			return err
		}
		// What the former process was told last may have come to nothing, and nobody was told what came since.
		if err := g.resync(ctx, 0); err != nil {
			return err
		}
		return g.tell(ctx)
	}
	g.take(d, before)
	if due {
		g.retry(before)
	}
	return g.tell(ctx)
}

// retry has the dataplane be told again of what failed, as the model has it at the version before. What it holds besides is not compared: that a tenant's
// records fail costs nobody else anything. A feature that the backend does not have it has no sooner than as another process.
func (g *Gateway) retry(before uint64) {
	g.retryAt = time.Time{}
	var d model.Delta
	for _, record := range slices.Sorted(maps.Keys(g.fails)) {
		f := g.fails[record]
		if f.of.Pool != "" {
			if p, is := g.hub.Pool(f.of.Pool); is {
				d.UpsertPools = append(d.UpsertPools, p)
			} else {
				d.DeletePools = append(d.DeletePools, f.of.Pool)
			}
			continue
		}
		frontend, is := g.hub.Frontend(f.of.Frontend)
		if !is {
			d.DeleteFrontends = append(d.DeleteFrontends, f.of.Frontend)
		} else if _, lacks := g.host.description.Lacks(frontend); !lacks {
			d.UpsertFrontends = append(d.UpsertFrontends, frontend)
		}
	}
	g.take(d, before)
}

// resync has the dataplane be told the difference to what it holds, and nothing else. Of a tenant that lacks nothing by the backlog it holds all up to the
// version before.
func (g *Gateway) resync(ctx context.Context, before uint64) error {
	held, err := g.host.holds(ctx)
	if err != nil {
		return err
	}
	g.goOnFrom(held.Digests, before)
	return nil
}

// goOnFrom has the backlog be the difference to what the dataplane holds.
func (g *Gateway) goOnFrom(held model.Digests, before uint64) {
	want := g.hub.Snapshot()
	clear(g.unsupported)
	accepted, refused := g.supported(model.Delta{UpsertPools: want.Pools, UpsertFrontends: want.Frontends})
	accepted, late := g.postponed.without(accepted, held, time.Now())
	d := model.Difference(held, model.Snapshot{Pools: accepted.UpsertPools, Frontends: accepted.UpsertFrontends})
	g.backlog.Clear()
	g.recognise(held, accepted, d)
	g.syncing = &syncing{until: g.backlog.Add(d, before), version: g.flushed, records: len(want.Pools) + len(want.Frontends), sent: d.Len()}
	g.retryAt = time.Time{}
	failing := append(refused, late...)
	g.fails = stillFailing(g.fails, append(recordsOf(d), failing...))
	g.note(without(accepted, d), failing)
}

// recognise tells the backlog what the dataplane has, and for whom, where the difference to the model does not name it.
func (g *Gateway) recognise(held model.Digests, wanted, d model.Delta) {
	changes := map[model.PoolID]bool{}
	for _, p := range d.UpsertPools {
		changes[p.ID] = true
	}
	for _, p := range wanted.UpsertPools {
		if !changes[p.ID] {
			g.backlog.HoldsPool(p)
		}
	}
	differs := map[model.FrontendKey]bool{}
	for _, f := range d.UpsertFrontends {
		differs[f.FrontendKey] = true
	}
	for _, f := range wanted.UpsertFrontends {
		if !differs[f.FrontendKey] {
			g.backlog.Holds(f.FrontendKey, f.Tenant)
		}
	}
	for key := range held.Frontends {
		g.backlog.HoldsUnknown(key)
	}
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
	for _, key := range d.DeleteFrontends {
		delete(g.unsupported, key)
	}
	kept := make([]model.Frontend, 0, len(d.UpsertFrontends))
	for _, f := range d.UpsertFrontends {
		if lacking, ok := g.host.description.Lacks(f); ok {
			e := dataplane.RecordError{Frontend: f.FrontendKey, Message: fmt.Sprintf("the %s backend does not support %s", g.host.description.Name, lacking)}
			refused = append(refused, e)
			g.unsupported[f.FrontendKey] = e
			d.DeleteFrontends = append(d.DeleteFrontends, f.FrontendKey)
			continue
		}
		delete(g.unsupported, f.FrontendKey)
		kept = append(kept, g.withRedirect(f))
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
	for _, e := range recordsOf(sent) {
		delete(g.fails, e.Record())
	}
	for _, e := range failed {
		f := failure{message: e.Message, of: dataplane.RecordError{Pool: e.Pool, Frontend: e.Frontend}}
		if owner, ok := g.hub.Owner(e.Frontend); ok && e.Pool == "" {
			f.owner = owner.String()
		}
		if e.Pool != "" {
			f.tenant = e.Pool.Tenant()
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
		if coming[key.VIP] || g.backlog.Comes(key.VIP) {
			g.between[key.VIP] = true
		} else {
			g.forget(key.VIP)
		}
	}
}

// forget ends to answer for an address that the dataplane does not hold any more.
func (g *Gateway) forget(address netip.Addr) {
	g.options.Announcer.Withdraw(address)
	g.setTenant(address, "")
	delete(g.answering.answers, address)
	g.answering.redirects.Forget(address)
}

func (g *Gateway) setTenant(address netip.Addr, tenant string) {
	if g.options.SetTenant != nil {
		g.options.SetTenant(address, tenant)
	}
}

// announce notes the addresses of frontends that the dataplane has confirmed: they may be answered for, once all of an address are there.
func (g *Gateway) announce(d model.Delta) {
	vips := map[netip.Addr]bool{}
	for _, f := range d.UpsertFrontends {
		vips[f.VIP] = true
		_, failed := g.fails[dataplane.RecordError{Frontend: f.FrontendKey}.Record()]
		if failed {
			continue
		}
		g.setTenant(f.VIP, f.Tenant)
		if g.held[f.FrontendKey] {
			continue
		}
		g.held[f.FrontendKey] = true
		g.vips[f.VIP]++
	}
	for _, key := range d.DeleteFrontends {
		vips[key.VIP] = true
	}
	for address := range vips {
		if _, known := g.answering.answers[address]; known || g.vips[address] == 0 || g.backlog.Comes(address) {
			continue
		}
		g.answering.answers[address] = false
		g.answering.fresh = append(g.answering.fresh, address)
	}
	for address := range g.between {
		switch {
		case g.vips[address] > 0:
			delete(g.between, address)
		case !g.backlog.Comes(address):
			// The dataplane has not taken what was to come in the place of others.
			delete(g.between, address)
			g.forget(address)
		}
	}
}
