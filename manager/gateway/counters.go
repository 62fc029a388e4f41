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

// countRequest requests the counters. ago is the time since the last request.
type countRequest struct {
	process driver.Process
	ago     time.Duration
}

// count requests the dataplane's counters when they are due. With many frontends the read takes longer than the loop may wait.
func (g *Gateway) count() {
	interval := report.CountInterval
	if g.drain.Shutdown.Begun() {
		interval = drain.CountInterval
	}
	if !g.served || !g.driver.Running() {
		return
	}
	if ago, due := g.counters.Start(interval, time.Now()); due {
		g.countRequests <- countRequest{g.driver.Process(), ago}
	}
}

// readCounters reads the counters, and the notes of the plugin, for each request until ctx ends.
func (g *Gateway) readCounters(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case request := <-g.countRequests:
			requestedAt := time.Now()
			limited, cancel := context.WithTimeout(ctx, report.CountTimeout)
			stats, err := request.process.Stats(limited)
			description, describeErr := request.process.Describe(limited)
			cancel()
			g.send(ctx, func(g *Gateway) {
				if request.process == g.driver.Process() {
					g.setCountersResult(err, requestedAt)
				}
				g.tally(stats, request.ago, err)
				if describeErr == nil {
					g.driver.SetNotes(request.process, description.Notes)
				}
			})
		}
	}
}

// setCountersResult notes whether the dataplane has returned its counters.
func (g *Gateway) setCountersResult(err error, requestedAt time.Time) {
	if err == nil {
		g.serving.SetDataplaneAnswered()
	}
	g.counters.SetResult(err, requestedAt, g.driver.Calling() != nil)
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

// tenantOf returns the tenant of the frontend, empty for none.
func (g *Gateway) tenantOf(key model.FrontendKey) string {
	owner, known := g.hub.Owner(key)
	tenant, ok := translate.TenantOf(owner.Namespace)
	if !known || !ok {
		return ""
	}
	return tenant
}
