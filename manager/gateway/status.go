package gateway

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/bgp/routers"
	"kubelb.k8c.io/manager/gateway/report"
	"kubelb.k8c.io/manager/watchdog"
)

// publish hands the present state to the writer, and to the metrics.
func (g *Gateway) publish() {
	now, failing := time.Now(), g.failing()
	s := report.State{
		Driver: g.driver, Served: g.served, AllAnnounced: g.ownership.AllAnnounced(g.served), Answered: g.ownership.AnsweredCount(), Elects: g.ownership.Elects(), View: g.ownership.View(),
		Tenants: g.counters.Use(now), HostAddresses: g.hosts.published(), Silent: g.silent(now), Tries: g.tries.Status(failing),
		Lacking: g.lacking(), Conditions: g.conditions(now),
	}
	if g.options.Conflicts != nil {
		s.Conflicts = g.options.Conflicts()
	}
	if g.options.Heartbeats != nil {
		s.Refusals = g.options.Heartbeats.Refusals()
	}
	r := report.New(s, now)
	if g.routers != nil {
		r.BGPSessions = g.routers.Sessions()
		r.Conditions = append(r.Conditions, routers.Condition(r.BGPSessions, g.routers.HasLoaded()))
	}
	g.metrics.Show(&r.GatewayStatus, g.gauges(failing))
	g.writer.Publish(r)
}

// conditions returns the conditions that this package decides.
func (g *Gateway) conditions(now time.Time) (conditions []metav1.Condition) {
	if served, ok := g.servedCondition(now); ok {
		conditions = append(conditions, served)
	}
	if g.drain.Draining() {
		conditions = append(conditions, report.Drained(g.ownership.AnsweredCount(), g.ownership.IsReplaced()))
	}
	return conditions
}

func (g *Gateway) gauges(failing map[model.FrontendKey]watchdog.Failure) report.Gauges {
	f := report.Gauges{Failing: report.CountNodesAnswer(failing), Draining: g.drain.Draining(), MayAnswer: g.ownership.MayAnswer(), Failed: len(g.driver.Failures()), Redirected: g.ownership.RedirectedCount(), Targets: g.targets, Unhealthy: len(g.unhealthy)}
	if lease := g.options.lease(); lease != nil {
		reaches := lease.ReachesAPI()
		f.Hub = &reaches
	}
	return f
}

// servedCondition returns the condition Served, and false if there is none.
func (g *Gateway) servedCondition(now time.Time) (metav1.Condition, bool) {
	// A gateway that shuts down reports it for its next process.
	shouldAnswer := g.ownership.AnsweredCount() > 0 || !g.served || g.drain.Shutdown.Begun()
	return g.serving.Condition(g.counters.Problem(now), shouldAnswer)
}

// neighbours returns the check whether hosts on the segment still answer this gateway.
func (g *Gateway) neighbours() *watchdog.Neighbours {
	return &watchdog.Neighbours{Interfaces: g.options.CheckedInterfaces,
		OnChange: func(ctx context.Context, s watchdog.Segment) {
			if s.Problem != "" {
				g.log.Warn("no host on the segment answers this gateway", "reason", s.Problem)
			}
			g.send(ctx, func(g *Gateway) { g.serving.SetSegment(s) })
		},
		OnError: func(err error) {
			g.log.Warn("check whether hosts on the segment answer this gateway", "error", err)
		}}
}
