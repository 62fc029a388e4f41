package translate

import (
	"maps"
	"net/netip"
)

// mentions are the Addresses objects that list an address, and the LoadBalancers that have it as a target of their own. They are translated anew when
// the address gets another owner.
type mentions struct {
	sources map[netip.Addr]map[*source]bool
	entries map[netip.Addr]map[*entry]bool
}

// source notes that an object lists what is given, and no more what it listed before.
func (m mentions) source(s *source, before, after *Addresses) {
	if before != nil {
		eachAddress(before.List, func(a netip.Addr) { remove(m.sources, a, s) })
	}
	if after != nil {
		eachAddress(after.List, func(a netip.Addr) { add(m.sources, a, s) })
	}
}

// entry notes the same of a LoadBalancer.
func (m mentions) entry(e *entry, before, after *LoadBalancer) {
	change := func(lb *LoadBalancer, do func(netip.Addr)) {
		if lb == nil {
			return
		}
		eachAddress(lb.Addresses, do)
		if lb.Local != nil {
			eachAddress(*lb.Local, do)
		}
	}
	change(before, func(a netip.Addr) { remove(m.entries, a, e) })
	change(after, func(a netip.Addr) { add(m.entries, a, e) })
}

func eachAddress(list []Address, do func(netip.Addr)) {
	for _, entry := range list {
		if address, err := netip.ParseAddr(entry.IP); err == nil {
			do(address)
		}
	}
}

// SetHosts replaces the addresses of the management cluster's own hosts. Only who mentions one that has come or gone is translated anew.
func (h *Hub) SetHosts(hosts map[netip.Addr]string) {
	before := h.fence.Hosts
	h.fence.Hosts = maps.Clone(hosts)
	var changed []netip.Addr
	for address, host := range hosts {
		if before[address] != host {
			changed = append(changed, address)
		}
	}
	for address := range before {
		if _, still := hosts[address]; !still {
			changed = append(changed, address)
		}
	}
	h.markMentioning(changed)
}

// markMentioning notes that it may be told anew who may target these.
func (h *Hub) markMentioning(addresses []netip.Addr) {
	for _, address := range addresses {
		for s := range h.mentions.sources[address] {
			h.markSource(s)
		}
		for e := range h.mentions.entries[address] {
			h.markLB(e)
		}
	}
}

// markAll notes that all may have to be translated anew.
func (h *Hub) markAll() {
	for _, e := range h.lbs {
		h.markLB(e)
	}
	for _, s := range h.sources {
		h.markSource(s)
	}
}
