package gateway

import (
	"context"
	"net/netip"
	"time"

	"kubelb.k8c.io/backends/dataplane"
)

// Filter keeps a host from forwarding between segments what is no frontend's. Its functions are not called concurrently.
type Filter interface {
	// Keep brings it to what endpoints there are, and which VIPs are forwarded direct. Both are sorted.
	Keep(endpoints, direct []netip.Addr) error
	// End removes it.
	End() error
}

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
	type wanted struct {
		endpoints, direct []netip.Addr
		programmed        bool
	}
	for {
		w, is := asked(ctx, g, func(g *Gateway) wanted {
			endpoints, direct := g.hub.Addresses()
			return wanted{endpoints, direct, g.driver.Synced()}
		})
		if !is {
			return nil
		}
		checks := transitChecks(g.options.Transit.Keep(w.endpoints, w.direct))
		g.send(ctx, func(g *Gateway) {
			g.transitChecks = checks
			g.served = g.served || w.programmed
		})
		if !g.awaitMove(ctx) {
			return nil
		}
	}
}

// serveFiltered has a gateway serve whose dataplane holds everything: at once, or for the first time once the filter of strangers knows of the
// dataplane. The filter drops the dataplane's connections if it was made when nothing on the host tracked connections.
func (g *Gateway) serveFiltered() {
	if g.served = g.served || g.options.Transit == nil; g.served {
		return
	}
	select {
	case g.filterNow <- struct{}{}:
	default:
	}
}

// awaitMove waits until it is time to look again, and returns false when ctx has ended.
func (g *Gateway) awaitMove(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-g.filterNow:
		return true
	case <-time.After(transitPause):
	}
	select {
	case <-ctx.Done():
		return false
	case <-g.filterNow:
	case <-g.moved:
	case <-time.After(hostCheckEvery):
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
