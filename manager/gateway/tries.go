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
		Sources: g.options.TryFrom, Interval: g.options.TryEvery, Frontends: g.toTry, Log: g.log,
		OnReport:  func(ctx context.Context, r watchdog.Report) { g.send(ctx, func(g *Gateway) { g.tries.SetReport(r) }) },
		OnOutcome: func(o watchdog.Outcome) { g.metrics.Tried(o.Word()) },
	})
}

// toTry asks the gateway's loop which frontends can be tried now.
func (g *Gateway) toTry(ctx context.Context) watchdog.List {
	list, _ := asked(ctx, g, (*Gateway).triableNow)
	return list
}

// triableNow are the frontends that can be tried now. Clients reach one here, by the gateway's own state, if the dataplane holds it and the gateway
// answers for its VIP.
func (g *Gateway) triableNow() watchdog.List {
	served := func(key model.FrontendKey) bool { return g.driver.Serves(key) && g.ownership.AnswersFor(key.VIP) }
	return g.tries.List(g.hub.Snapshot(), g.options.TryFrom, served, g.hasReadModel(), time.Now())
}

// hasReadModel tells whether the model is what the hub has.
func (g *Gateway) hasReadModel() bool { return g.driver.Version() > 0 }

// failing are the frontends to which connections fail.
func (g *Gateway) failing() map[model.FrontendKey]watchdog.Failure {
	if g.hasLeft() {
		return nil
	}
	now := time.Now()
	g.tries.FindUnconfirmed(g.hub.Snapshot, g.options.TryFrom, g.hasReadModel(), now)
	return g.tries.Failing(now)
}

// hasLeft tells whether clients reach other gateways, if any, for each address: this one drains where nobody is elected. One that ends may be back in a
// moment, and where nobody takes over its clients have no other.
func (g *Gateway) hasLeft() bool {
	return !g.ownership.Elects() && g.drain.Draining() && (!g.drain.Shutdown.Begun() || g.ownership.IsReplaced())
}

// triesChanged takes over what a gateway says of its tries.
func triesChanged(o *v1alpha1.Gateway, gone bool) event {
	return func(g *Gateway) {
		tries := o.Status.Tries
		if gone {
			tries = nil
		}
		g.tries.ReadStatus(o.Name, tries, time.Now())
	}
}

// sameTries tells whether two versions of a Gateway say the same of failing ports.
func sameTries(a, b *v1alpha1.Gateway) bool {
	of := func(g *v1alpha1.Gateway) v1alpha1.GatewayTries {
		if g.Status.Tries == nil {
			return v1alpha1.GatewayTries{}
		}
		return *g.Status.Tries
	}
	return slices.Equal(of(a).Failures, of(b).Failures) && slices.Equal(of(a).Unlisted, of(b).Unlisted)
}
