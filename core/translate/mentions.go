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
	// namespaces are how many times an address is mentioned in each.
	namespaces map[netip.Addr]map[string]int
}

func newMentions() mentions {
	return mentions{map[netip.Addr]map[*source]bool{}, map[netip.Addr]map[*entry]bool{}, map[netip.Addr]map[string]int{}}
}

// source notes that an object lists what is given, and no more what it listed before.
func (m mentions) source(s *source, before, after *Addresses) {
	change := func(a *Addresses, by int, index func(map[netip.Addr]map[*source]bool, netip.Addr, *source)) {
		if a == nil {
			return
		}
		eachAddress(a.List, func(address netip.Addr) {
			index(m.sources, address, s)
			m.count(address, s.name.Namespace, by)
		})
	}
	change(before, -1, remove)
	change(after, 1, add)
}

// entry notes the same of a LoadBalancer.
func (m mentions) entry(e *entry, before, after *LoadBalancer) {
	change := func(lb *LoadBalancer, by int, index func(map[netip.Addr]map[*entry]bool, netip.Addr, *entry)) {
		if lb == nil {
			return
		}
		do := func(address netip.Addr) {
			index(m.entries, address, e)
			m.count(address, lb.Namespace, by)
		}
		eachAddress(lb.Addresses, do)
		if lb.Local != nil {
			eachAddress(*lb.Local, do)
		}
	}
	change(before, -1, remove)
	change(after, 1, add)
}

func (m mentions) count(address netip.Addr, namespace string, by int) {
	of := m.namespaces[address]
	if of == nil {
		of = map[string]int{}
		m.namespaces[address] = of
	}
	if of[namespace] += by; of[namespace] == 0 {
		delete(of, namespace)
	}
	if len(of) == 0 {
		delete(m.namespaces, address)
	}
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
	for _, address := range changed {
		h.markMentioning(address, func(string) bool { return true })
	}
}

// standpoint is a tenant's, by its namespace, towards an address that it mentions.
type standpoint struct {
	address   netip.Addr
	namespace string
}

// list replaces what an object lists. Only who may target an address since then, or may no more, is translated anew: not all who mention what a tenant
// lists, which costs that tenant one write.
func (h *Hub) list(a Addresses) {
	before := map[standpoint]bool{}
	h.claims.replace(a, func(address netip.Addr) {
		for namespace := range h.mentions.namespaces[address] {
			at := standpoint{address, namespace}
			if _, noted := before[at]; !noted {
				before[at] = h.isAnothers(at)
			}
		}
	})
	for at, was := range before {
		if h.isAnothers(at) != was {
			h.markMentioning(at.address, func(namespace string) bool { return namespace == at.namespace })
		}
	}
}

// isAnothers tells whether the address is another tenant's node.
func (h *Hub) isAnothers(at standpoint) bool {
	tenant, known := h.tenants[at.namespace]
	if !known {
		return false
	}
	_, is := h.claims.Rival(tenant, at.address)
	return is
}

// markMentioning marks what mentions the address, in the namespaces concerned, to be translated anew: who may target it has changed.
func (h *Hub) markMentioning(address netip.Addr, concerned func(namespace string) bool) {
	for s := range h.mentions.sources[address] {
		if concerned(s.name.Namespace) {
			h.markSource(s)
		}
	}
	for e := range h.mentions.entries[address] {
		if concerned(e.lb.Namespace) {
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
