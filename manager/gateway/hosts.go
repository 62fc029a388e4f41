package gateway

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/manager/hubhosts"
)

const (
	// hostInterval is how often the gateway reads the addresses of its host.
	hostInterval = 10 * time.Second
	// maxHostAddresses bounds the published addresses.
	maxHostAddresses = 256
)

// hosts are the hosts of the management cluster, by their names in messages.
type hosts struct {
	byName   map[string][]netip.Addr
	own      []netip.Addr
	lastRead time.Time
	changed  bool
}

func (h *hosts) set(name string, addresses []netip.Addr) {
	if slices.Equal(h.byName[name], addresses) {
		return
	}
	if h.byName == nil {
		h.byName = map[string][]netip.Addr{}
	}
	if h.byName[name] = addresses; len(addresses) == 0 {
		delete(h.byName, name)
	}
	h.changed = true
}

// published returns the published addresses of this host.
func (h *hosts) published() (out []string) {
	for _, a := range h.own[:min(len(h.own), maxHostAddresses)] {
		out = append(out, a.String())
	}
	return out
}

// updateHosts updates the addresses that are never targets.
func (g *Gateway) updateHosts(now time.Time) {
	h := &g.hosts
	if g.options.HostAddresses != nil && now.Sub(h.lastRead) >= hostInterval {
		h.lastRead = now
		h.own = g.options.HostAddresses()
		h.set("gateway "+g.options.Name, h.own)
	}
	if !h.changed {
		return
	}
	h.changed = false
	all := map[netip.Addr]string{}
	for name, addresses := range h.byName {
		for _, a := range addresses {
			if before, known := all[a]; !known || name < before {
				all[a] = name
			}
		}
	}
	g.hub.SetHosts(all)
}

func nodeChanged(o client.Object, gone bool) event {
	name := "Node " + o.GetName()
	return func(g *Gateway) {
		if gone {
			g.hosts.set(name, nil)
			return
		}
		g.hosts.set(name, hubhosts.NodeAddresses(o.(*corev1.Node)))
	}
}
