package gateway

import (
	"context"
	"slices"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/watchdog"
)

func (g *Gateway) newWatchdog() *watchdog.Watchdog {
	return watchdog.New(watchdog.Options{
		Sources: g.options.TryFrom, Interval: g.options.TryEvery, Frontends: g.triableFrontends, Log: g.log,
		OnReport:  func(ctx context.Context, r watchdog.Report) { g.send(ctx, func(g *Gateway) { g.tries.SetReport(r) }) },
		OnOutcome: func(o watchdog.Outcome) { g.metrics.Tried(o.Word()) },
	})
}

// triableFrontends asks the loop which frontends can be tried now.
func (g *Gateway) triableFrontends(ctx context.Context) watchdog.List {
	list, _ := query(ctx, g, (*Gateway).triableNow)
	return list
}

// triableNow returns the frontends that can be tried now. Clients reach a frontend here if the dataplane holds it and the gateway answers for its
// VIP.
func (g *Gateway) triableNow() watchdog.List {
	serves := func(key model.FrontendKey) bool { return g.driver.Serves(key) && g.ownership.AnswersFor(key.VIP) }
	return g.tries.List(g.hub.Snapshot(), g.options.TryFrom, serves, g.hasReadModel(), time.Now())
}

// hasReadModel reports whether the model was read from the hub.
func (g *Gateway) hasReadModel() bool { return g.driver.Version() > 0 }

// failing returns the frontends to which connections fail.
func (g *Gateway) failing() map[model.FrontendKey]watchdog.Failure {
	if g.clientsMoved() {
		return nil
	}
	now := time.Now()
	g.tries.FindUnconfirmed(g.hub.Snapshot, g.options.TryFrom, g.hasReadModel(), now)
	return g.tries.Failing(now)
}

// clientsMoved reports whether clients reach other gateways for each address: this gateway drains, and gateways do not elect. A gateway that shuts
// down may be back in a moment. If no peer takes over, its clients have no other gateway.
func (g *Gateway) clientsMoved() bool {
	return !g.ownership.Elects() && g.drain.Draining() && (!g.drain.Shutdown.Begun() || g.ownership.IsReplaced())
}

// triesChanged takes over the tries of a Gateway object.
func triesChanged(o *v1alpha1.Gateway, gone bool) event {
	return func(g *Gateway) {
		tries := o.Status.Tries
		if gone {
			tries = nil
		}
		g.tries.ReadStatus(o.Name, tries, time.Now())
	}
}

// sameTries reports whether two versions of a Gateway name the same failing ports.
func sameTries(a, b *v1alpha1.Gateway) bool {
	tries := func(g *v1alpha1.Gateway) v1alpha1.GatewayTries {
		if g.Status.Tries == nil {
			return v1alpha1.GatewayTries{}
		}
		return *g.Status.Tries
	}
	return slices.Equal(tries(a).Failures, tries(b).Failures) && slices.Equal(tries(a).Unlisted, tries(b).Unlisted)
}
