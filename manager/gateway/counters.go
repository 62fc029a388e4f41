package gateway

import (
	"context"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/drain"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/report"
)

// countRequest asks for the counters, which were asked for so long ago before.
type countRequest struct {
	process driver.Process
	ago     time.Duration
}

// count has the dataplane's counters be read now and then. With many frontends that takes longer than anything else may have to wait.
func (g *Gateway) count() {
	every := report.CountInterval
	if g.drain.Shutdown.Begun() {
		every = drain.CountInterval
	}
	if !g.served || !g.driver.Running() {
		return
	}
	if ago, is := g.counters.Start(every, time.Now()); is {
		g.counts <- countRequest{g.driver.Process(), ago}
	}
}

// readCounters reads them, and what the plugin notes, each time that it is asked to, until ctx ends.
func (g *Gateway) readCounters(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case request := <-g.counts:
			askedAt := time.Now()
			limited, cancel := context.WithTimeout(ctx, report.CountTimeout)
			stats, err := request.process.Stats(limited)
			description, failed := request.process.Describe(limited)
			cancel()
			g.send(ctx, func(g *Gateway) {
				if request.process == g.driver.Process() {
					g.noteAnswer(err, askedAt)
				}
				g.tally(stats, request.ago, err)
				if failed == nil {
					g.driver.SetNotes(request.process, description.Notes)
				}
			})
		}
	}
}

// noteAnswer takes over whether the dataplane has answered a request for its counters.
func (g *Gateway) noteAnswer(err error, askedAt time.Time) {
	if err == nil {
		g.serving.SetDataplaneAnswered()
	}
	g.counters.SetResult(err, askedAt, g.driver.Calling() != nil)
}

// tally takes over the counters.
func (g *Gateway) tally(stats dataplane.Stats, ago time.Duration, err error) {
	g.counters.Done()
	if err != nil {
		g.log.Warn("read the dataplane's counters", "error", err)
		return
	}
	g.drain.Shutdown.NoteConnections(g.ownership.AnsweredCount() > 0, stats.Proxied)
	g.counters.Set(g.hub.Snapshot().Frontends, stats.Frontends, g.metrics.Last(), ago, time.Now())
	g.metrics.Add(stats, g.tenantOf)
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
