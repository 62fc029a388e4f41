package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/watchdog"
)

func (g *Gateway) newWatchdog() *watchdog.Watchdog {
	return watchdog.New(watchdog.Options{
		Sources: g.options.TryFrom, Every: g.options.TryEvery, Frontends: g.toTry, Log: g.log,
		Tell: func(ctx context.Context, r watchdog.Report) {
			g.send(ctx, func(g *Gateway) { g.tried = r; g.former.told(r) })
		},
		Count: func(o watchdog.Outcome) { g.metrics.tries.WithLabelValues(o.Word()).Inc() },
	})
}

// toTry asks the gateway's loop which frontends can be tried now.
func (g *Gateway) toTry(ctx context.Context) []watchdog.Frontend {
	list, _ := asked(ctx, g, (*Gateway).triableNow)
	return list
}

// triableNow are the frontends that can be tried, but for those of other gateways. While their clients do not reach them here, what is known of them stays.
func (g *Gateway) triableNow() []watchdog.Frontend {
	elsewhere := g.elsewhere()
	g.inherit(time.Now())
	list := triable(g.hub.Snapshot(), g.options.TryFrom, func(f model.Frontend) bool { return !elsewhere(f.VIP) })
	for i, f := range list {
		key := keyOf(f.AddrPort)
		list[i].Paused, list[i].Former = !g.isServed(key), g.failedBefore(key)
		list[i].Moved = list[i].Former != "" && g.former.failures[key].moved
	}
	if g.driver.Version() > 0 { // else the hub has not been read
		g.former.keep(list, elsewhere, time.Now())
	}
	return list
}

// isServed tells whether, by the gateway's own state, its clients reach the frontend here: the dataplane holds it, and the gateway answers for its VIP.
func (g *Gateway) isServed(key model.FrontendKey) bool {
	return g.driver.Serves(key) && g.answering.answers[key.VIP]
}

// triable returns the frontends that can be tried from the addresses: package watchdog says which ones cannot.
func triable(s model.Snapshot, from []netip.Addr, served func(model.Frontend) bool) (list []watchdog.Frontend) {
	pools := make(map[model.PoolID][]model.Endpoint, len(s.Pools))
	for _, p := range s.Pools {
		pools[p.ID] = p.Endpoints
	}
	for _, f := range s.Frontends {
		if f.Protocol != model.TCP || f.Forwarding == model.Direct || !mayConnect(f, from) || !served(f) {
			continue
		}
		var endpoints []netip.AddrPort
		for _, e := range pools[f.Pool] {
			if e.State == model.Active {
				endpoints = append(endpoints, netip.AddrPortFrom(e.Address, f.TargetPort))
			}
		}
		if len(endpoints) == 0 {
			continue // connections are refused
		}
		list = append(list, watchdog.Frontend{AddrPort: netip.AddrPortFrom(f.VIP, f.Port), Tenant: f.Tenant, KeepsClient: f.Forwarding == model.Transparent,
			Limited: f.MaxConnections > 0 || f.MaxNewPerSecond > 0, Endpoints: endpoints})
	}
	return list
}

// mayConnect tells whether the frontend's source ranges let one of the addresses in.
func mayConnect(f model.Frontend, from []netip.Addr) bool {
	if !f.Restricted {
		return true
	}
	for _, source := range from {
		for _, r := range f.SourceRanges {
			if r.Contains(source) {
				return true
			}
		}
	}
	return false
}

// tries is status.tries of the Gateway object, nil if tries are turned off.
func (g *Gateway) tries(failing map[model.FrontendKey]watchdog.Failure) *v1alpha1.GatewayTries {
	if g.watchdog == nil {
		return nil
	}
	t := &v1alpha1.GatewayTries{Answered: int32(g.tried.Answered), Untried: int32(g.tried.Untried), Problem: plain.Message(g.tried.Problem, 1024)}
	fails, of := map[string]driver.Failure{}, map[model.ObjectName]int{}
	for key := range failing {
		owner, _ := g.hub.Owner(key)
		of[owner]++
	}
	for key, f := range failing {
		owner, _ := g.hub.Owner(key)
		message := f.Message
		if others := of[owner] - 1; others > 0 { // of each LoadBalancer one is named
			message += fmt.Sprintf(othersFail, others)
		}
		fails[frontendRecord+key.String()] = driver.Failure{Owner: owner.String(), Message: message}
	}
	t.Failing = int32(len(fails))
	t.Failures, t.Unlisted = listed(fails)
	return t
}

// failing are the frontends to which connections fail by the last report, or failed before and were not tried since. Without those that were deleted, or
// have moved to another gateway.
func (g *Gateway) failing() map[model.FrontendKey]watchdog.Failure {
	failing, elsewhere := map[model.FrontendKey]watchdog.Failure{}, g.elsewhere()
	if g.hasLeft() {
		return failing
	}
	g.inherit(time.Now())
	for key := range g.former.failures {
		if message := g.failedBefore(key); message != "" && !elsewhere(key.VIP) {
			failing[key] = watchdog.Failure{AddrPort: netip.AddrPortFrom(key.VIP, key.Port), Message: message}
		}
	}
	for _, f := range g.tried.Failures {
		if _, known := g.hub.Owner(keyOf(f.AddrPort)); known && !elsewhere(f.Addr()) {
			failing[keyOf(f.AddrPort)] = f
		}
	}
	return failing
}

// beyondNodes is how many of these fail though their nodes answer the gateway itself.
func beyondNodes(failing map[model.FrontendKey]watchdog.Failure) (n int) {
	for _, f := range failing {
		if f.NodesAnswer {
			n++
		}
	}
	return n
}
