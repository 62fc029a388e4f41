package gateway

import (
	"context"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/driver"
)

// countEvery is how often the dataplane's counters are read.
const countEvery = 15 * time.Second

// countedFor is for how long counters count that were read.
const countedFor = 3 * countEvery

// countLimit is how long that may take.
const countLimit = 15 * time.Second

// countRequest asks for the counters, which were asked for so long ago before.
type countRequest struct {
	process driver.Process
	ago     time.Duration
}

// count has the dataplane's counters be read now and then. With many frontends that takes longer than anything else may have to wait.
func (g *Gateway) count() {
	every := countEvery
	switch {
	case g.drain.Shutdown.Begun():
		every = drain.LookEvery
	case !g.deaf.since.IsZero():
		every = countAgainAfter
	}
	if !g.served || !g.driver.Running() || g.counting || time.Since(g.counted) < every {
		return
	}
	request := countRequest{g.driver.Process(), time.Since(g.counted)}
	g.counted, g.counting = time.Now(), true
	g.counts <- request
}

// readCounters reads them, and what the backend notes, each time that it is asked to, until ctx ends.
func (g *Gateway) readCounters(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case request := <-g.counts:
			askedAt := time.Now()
			limited, cancel := context.WithTimeout(ctx, countLimit)
			stats, err := request.process.Stats(limited)
			description, failed := request.process.Describe(limited)
			cancel()
			g.send(ctx, func(g *Gateway) {
				if request.process == g.driver.Process() {
					g.noteDeafness(err, askedAt, g.driver.Calling() != nil)
				}
				g.tally(stats, request.ago, err)
				if failed == nil {
					g.driver.SetNotes(request.process, description.Notes)
				}
			})
		}
	}
}

// tally takes over the counters.
func (g *Gateway) tally(stats dataplane.Stats, ago time.Duration, err error) {
	g.counting = false
	if err != nil {
		g.log.Warn("read the dataplane's counters", "error", err)
		return
	}
	g.drain.Shutdown.NoteConnections(g.answering.answered() > 0, stats.Proxied)
	g.read = time.Now()
	g.use = useOf(g.hub.Snapshot().Frontends, stats.Frontends, g.metrics.last, ago)
	g.metrics.add(stats, g.tenantOf)
}

// usedNow is what tenants use of their limits; nobody knows it while the dataplane does not say what it counts.
func (g *Gateway) usedNow(now time.Time) []v1alpha1.GatewayTenantUse {
	if now.Sub(g.read) > countedFor {
		return nil
	}
	return g.use
}

// tenantOf is whose the frontend is; nobody's if empty.
func (g *Gateway) tenantOf(key model.FrontendKey) string {
	owner, known := g.hub.Owner(key)
	tenant, is := translate.TenantOf(owner.Namespace)
	if !known || !is {
		return ""
	}
	return tenant
}
