package gateway

import (
	"context"
	"net/netip"
	"time"

	"kubelb.k8c.io/backends/dataplane"
)

// Filter keeps a host from forwarding other packets between segments than those of frontends. Its functions are not called concurrently.
type Filter interface {
	// Update sets the filter for the endpoints, and the VIPs that are forwarded direct. Both are sorted.
	Update(endpoints, direct []netip.Addr) error
	// Remove removes it.
	Remove() error
}

// transitPause is the least pause between two changes of the filter.
const transitPause = time.Second

// noteModelChange makes runTransitFilter update the filter.
func (g *Gateway) noteModelChange() {
	select {
	case g.modelChanged <- struct{}{}:
	default:
	}
}

// runTransitFilter keeps the filter up to date with routes and endpoints until ctx ends.
func (g *Gateway) runTransitFilter(ctx context.Context) error {
	if g.options.TransitFilter == nil {
		return nil
	}
	type wanted struct {
		endpoints, direct []netip.Addr
		programmed        bool
	}
	for {
		w, ok := query(ctx, g, func(g *Gateway) wanted {
			endpoints, direct := g.hub.Addresses()
			return wanted{endpoints, direct, g.driver.Synced()}
		})
		if !ok {
			return nil
		}
		checks := transitChecks(g.options.TransitFilter.Update(w.endpoints, w.direct))
		g.send(ctx, func(g *Gateway) {
			g.transitChecks = checks
			g.served = g.served || w.programmed
		})
		if !g.awaitChange(ctx) {
			return nil
		}
	}
}

// serveFiltered is called when the dataplane holds everything. Without a filter the gateway serves at once. With a filter it serves once the filter
// was set again: a filter that was set while nothing on the host tracked connections drops the dataplane's connections.
func (g *Gateway) serveFiltered() {
	if g.served = g.served || g.options.TransitFilter == nil; g.served {
		return
	}
	select {
	case g.filterNow <- struct{}{}:
	default:
	}
}

// awaitChange waits until the filter is to be set again. It returns false when ctx has ended.
func (g *Gateway) awaitChange(ctx context.Context) bool {
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
	case <-g.modelChanged:
	case <-time.After(hostCheckInterval):
	}
	return true
}

// transitChecks returns what a filter that cannot be set costs.
func transitChecks(err error) []dataplane.Check {
	if err == nil {
		return nil
	}
	return []dataplane.Check{{Group: dataplane.GroupKernel, Subject: "filter of forwarded packets", Costs: "keeping hosts on the clients' network from the nodes' network, and nodes from other networks",
		State: dataplane.CheckMissing, Found: err.Error(), Advice: "use a kernel with nf_tables (CONFIG_NF_TABLES_INET), or let a firewall do this and start the gateway with --router"}}
}

// removeTransitFilter removes the filter from the host.
func (g *Gateway) removeTransitFilter() error {
	if g.options.TransitFilter == nil {
		return nil
	}
	return g.options.TransitFilter.Remove()
}
