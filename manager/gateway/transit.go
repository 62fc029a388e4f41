package gateway

import (
	"context"
	"net/netip"
	"time"

	"kubelb.k8c.io/backends/dataplane"
)

// transitPause is how long a change of frontends and endpoints waits after another one before strangers are kept from them.
const transitPause = time.Second

// noteMoved has keepTransit look at what has changed.
func (g *Gateway) noteMoved() {
	select {
	case g.moved <- struct{}{}:
	default:
	}
}

// keepTransit keeps strangers out, as routes and endpoints are, until ctx ends.
func (g *Gateway) keepTransit(ctx context.Context) error {
	if g.options.Transit == nil {
		return nil
	}
	type wanted struct{ endpoints, direct []netip.Addr }
	for {
		w, is := asked(ctx, g, func(g *Gateway) wanted {
			endpoints, direct := g.hub.Addresses()
			return wanted{endpoints, direct}
		})
		if !is {
			return nil
		}
		checks := transitChecks(g.options.Transit.Keep(w.endpoints, w.direct))
		g.send(ctx, func(g *Gateway) { g.transitChecks = checks })
		if !g.awaitMove(ctx) {
			return nil
		}
	}
}

// awaitMove waits until it is time to look again, and returns false when ctx has ended.
func (g *Gateway) awaitMove(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(transitPause):
	}
	select {
	case <-ctx.Done():
		return false
	case <-g.moved:
	case <-time.After(recheckEvery):
	}
	return true
}

// transitChecks say what a failure to keep strangers out costs.
func transitChecks(err error) []dataplane.Check {
	if err == nil {
		return nil
	}
	return []dataplane.Check{{Group: dataplane.GroupKernel, Subject: "filter of what this host forwards", Costs: "keeping hosts on the clients' network from the nodes' network, and nodes from other networks",
		State: dataplane.CheckMissing, Found: err.Error(), Advice: "use a kernel that has nf_tables (CONFIG_NF_TABLES_INET), or have a firewall do so and start the gateway with --router"}}
}

// endTransit leaves the host as it would be without a gateway.
func (g *Gateway) endTransit() error {
	if g.options.Transit == nil {
		return nil
	}
	return g.options.Transit.End()
}
