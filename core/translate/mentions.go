package translate

import (
	"iter"
	"maps"
	"net/netip"
)

// mentions know which lists of targets have an address: Addresses objects, and LoadBalancers with targets of their own. They are translated anew when
// the address gets another owner. Of each list they keep four bytes for each target, since a tenant may have millions of targets.
type mentions struct {
	hasher  AddressHasher
	sources map[string]map[*source]bool // by namespace
	entries map[string]map[*entry]bool  // by namespace
}

func newMentions() mentions {
	return mentions{NewAddressHasher(), map[string]map[*source]bool{}, map[string]map[*entry]bool{}}
}

// source notes what the object lists.
func (m mentions) source(s *source) {
	s.mentions = nil
	if s.object != nil {
		s.mentions = m.hasher.Hashes(func(do func(netip.Addr)) { eachAddress(s.object.List, do) })
	}
	note(m.sources, s.name.Namespace, s, len(s.mentions) > 0)
}

// entry notes the LoadBalancer's own targets.
func (m mentions) entry(e *entry) {
	e.mentions = m.hasher.Hashes(func(do func(netip.Addr)) {
		e.lb.Packed.Addresses.Each(do)
		e.lb.Packed.Local.Each(do)
	})
	note(m.entries, e.lb.Namespace, e, len(e.mentions) > 0)
}

func note[T comparable](of map[string]map[T]bool, namespace string, what T, is bool) {
	if is {
		add(of, namespace, what)
		return
	}
	remove(of, namespace, what)
}

// within are all that a namespace's lists have.
func (m mentions) within(namespace string, s AddressSearch) (found map[netip.Addr]bool) {
	note := func(list AddressHashes) {
		for _, address := range s.In(list) {
			if found == nil {
				found = map[netip.Addr]bool{}
			}
			found[address] = true
		}
	}
	for source := range m.sources[namespace] {
		note(source.mentions)
	}
	for entry := range m.entries[namespace] {
		note(entry.mentions)
	}
	return found
}

// namespaces are those with a list that has an address, each once.
func (m mentions) namespaces() iter.Seq[string] {
	return func(yield func(string) bool) {
		for namespace := range m.sources {
			if !yield(namespace) {
				return
			}
		}
		for namespace := range m.entries {
			if m.sources[namespace] == nil && !yield(namespace) {
				return
			}
		}
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
	if len(changed) == 0 {
		return
	}
	s := h.mentions.hasher.Search(changed)
	for namespace := range h.mentions.namespaces() {
		h.markMentioning(namespace, s)
	}
}

// list replaces what an object lists. Only who may target an address since then, or may no more, is translated anew: not all who mention what a tenant
// lists, which costs that tenant one write.
func (h *Hub) list(a Addresses) {
	by, known := h.tenants[a.Namespace]
	differing := h.claims.Differing(a)
	if !known || len(differing) == 0 {
		h.claims.SetAddresses(a)
		return
	}
	before := h.anothers(by.Network, differing)
	h.claims.SetAddresses(a)
	for namespace, was := range before {
		var passed []netip.Addr
		for address, anothers := range was {
			if _, is := h.claims.Rival(h.tenants[namespace], address); is != anothers {
				passed = append(passed, address)
			}
		}
		if len(passed) > 0 {
			h.markMentioning(namespace, h.mentions.hasher.Search(passed))
		}
	}
}

// anothers are, by namespace, the addresses that lists of the network's tenants have, each with whether it is another tenant's. An address outside a
// tenant's backendCIDRs is refused whoever has it.
func (h *Hub) anothers(network string, addresses []netip.Addr) map[string]map[netip.Addr]bool {
	out, s := map[string]map[netip.Addr]bool{}, h.mentions.hasher.Search(addresses)
	for namespace := range h.mentions.namespaces() {
		tenant, known := h.tenants[namespace]
		if !known || tenant.Network != network {
			continue
		}
		mentioned := h.mentions.within(namespace, s)
		maps.DeleteFunc(mentioned, func(address netip.Addr, _ bool) bool { return precision(tenant, address) < 0 })
		for address := range mentioned {
			_, mentioned[address] = h.claims.Rival(tenant, address)
		}
		if len(mentioned) > 0 {
			out[namespace] = mentioned
		}
	}
	return out
}

// markMentioning marks what mentions one of the addresses, in the namespace, to be translated anew: who may target it has changed.
func (h *Hub) markMentioning(namespace string, s AddressSearch) {
	for source := range h.mentions.sources[namespace] {
		if len(s.In(source.mentions)) > 0 {
			h.markSource(source)
		}
	}
	for entry := range h.mentions.entries[namespace] {
		if len(s.In(entry.mentions)) > 0 {
			h.markLB(entry)
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
