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
	// hostEvery is how often the gateway looks which addresses its host has.
	hostEvery = 10 * time.Second
	// maxHostAddresses are told to others.
	maxHostAddresses = 256
)

// hosts are the management cluster's own, by what they are called in messages.
type hosts struct {
	of      map[string][]netip.Addr
	own     []netip.Addr
	looked  time.Time
	changed bool
}

func (h *hosts) set(name string, addresses []netip.Addr) {
	if slices.Equal(h.of[name], addresses) {
		return
	}
	if h.of == nil {
		h.of = map[string][]netip.Addr{}
	}
	if h.of[name] = addresses; len(addresses) == 0 {
		delete(h.of, name)
	}
	h.changed = true
}

// published are this host's, as many as others are told.
func (h *hosts) published() (out []string) {
	for _, a := range h.own[:min(len(h.own), maxHostAddresses)] {
		out = append(out, a.String())
	}
	return out
}

// noteHosts brings what is never a target up to date.
func (g *Gateway) noteHosts(now time.Time) {
	h := &g.hosts
	if g.options.HostAddresses != nil && now.Sub(h.looked) >= hostEvery {
		h.looked = now
		h.own = g.options.HostAddresses()
		h.set("gateway "+g.options.Name, h.own)
	}
	if !h.changed {
		return
	}
	h.changed = false
	all := map[netip.Addr]string{}
	for name, addresses := range h.of {
		for _, a := range addresses {
			if before, is := all[a]; !is || name < before {
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
		g.hosts.set(name, hubhosts.OfNode(o.(*corev1.Node)))
	}
}
