package translate

import (
	"iter"
	"maps"
	"net/netip"
)

// mentions is an index of the lists of targets that have an address: of Addresses objects, and of LoadBalancers with their own targets. These are translated
// again when the address gets another owner. It keeps four bytes for each target of a list, since a tenant may have millions of targets.
type mentions struct {
	hasher  AddressHasher
	sources map[string]map[*source]bool // by namespace
	entries map[string]map[*entry]bool  // by namespace
}

func newMentions() mentions {
	return mentions{NewAddressHasher(), map[string]map[*source]bool{}, map[string]map[*entry]bool{}}
}

// setSource indexes what the object lists.
func (m mentions) setSource(s *source) {
	s.mentions = nil
	if s.object != nil {
		s.mentions = m.hasher.Hashes(func(do func(netip.Addr)) { eachAddress(s.object.List, do) })
	}
	setMember(m.sources, s.name.Namespace, s, len(s.mentions) > 0)
}

// setEntry indexes the LoadBalancer's own targets.
func (m mentions) setEntry(e *entry) {
	e.mentions = m.hasher.Hashes(func(do func(netip.Addr)) {
		e.lb.Packed.Addresses.Each(do)
		e.lb.Packed.Local.Each(do)
	})
	setMember(m.entries, e.lb.Namespace, e, len(e.mentions) > 0)
}

// setMember adds the list to the index, or removes it.
func setMember[T comparable](index map[string]map[T]bool, namespace string, list T, member bool) {
	if member {
		add(index, namespace, list)
		return
	}
	remove(index, namespace, list)
}

// within returns the searched addresses that the namespace's lists have.
func (m mentions) within(namespace string, s AddressSearch) (found map[netip.Addr]bool) {
	search := func(list AddressHashes) {
		for _, address := range s.In(list) {
			if found == nil {
				found = map[netip.Addr]bool{}
			}
			found[address] = true
		}
	}
	for source := range m.sources[namespace] {
		search(source.mentions)
	}
	for entry := range m.entries[namespace] {
		search(entry.mentions)
	}
	return found
}

// namespaces yields each namespace with a list that has an address once.
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

// SetHosts replaces the addresses of the management cluster's own hosts. Only lists with an address that was added or removed are translated again.
func (h *Translator) SetHosts(hosts map[netip.Addr]string) {
	before := h.filter.Hosts
	h.filter.Hosts = maps.Clone(hosts)
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

// setListed replaces what an object lists. A list is translated again only if an address of it may be a target now and could not be one before, or the
// other way round. To translate all lists with an address of the object would let a tenant cause much work with one write.
func (h *Translator) setListed(a Addresses) {
	tenant, known := h.tenants[a.Namespace]
	differing := h.nodeOwners.ChangedAddresses(a)
	if !known || len(differing) == 0 {
		h.nodeOwners.SetAddresses(a)
		return
	}
	before := h.ownedByOthers(tenant.Network, differing)
	h.nodeOwners.SetAddresses(a)
	for namespace, addresses := range before {
		var changed []netip.Addr
		for address, wasOthers := range addresses {
			if _, isOthers := h.nodeOwners.OtherOwner(h.tenants[namespace], address); isOthers != wasOthers {
				changed = append(changed, address)
			}
		}
		if len(changed) > 0 {
			h.markMentioning(namespace, h.mentions.hasher.Search(changed))
		}
	}
}

// ownedByOthers returns, by namespace, the addresses that lists of the network's tenants have, and whether another tenant owns each. It leaves out addresses
// outside a tenant's backendCIDRs, which are refused in any case.
func (h *Translator) ownedByOthers(network string, addresses []netip.Addr) map[string]map[netip.Addr]bool {
	out, s := map[string]map[netip.Addr]bool{}, h.mentions.hasher.Search(addresses)
	for namespace := range h.mentions.namespaces() {
		tenant, known := h.tenants[namespace]
		if !known || tenant.Network != network {
			continue
		}
		mentioned := h.mentions.within(namespace, s)
		maps.DeleteFunc(mentioned, func(address netip.Addr, _ bool) bool { return prefixLength(tenant, address) < 0 })
		for address := range mentioned {
			_, mentioned[address] = h.nodeOwners.OtherOwner(tenant, address)
		}
		if len(mentioned) > 0 {
			out[namespace] = mentioned
		}
	}
	return out
}

// markMentioning marks the lists of the namespace that have one of the addresses to be translated again.
func (h *Translator) markMentioning(namespace string, s AddressSearch) {
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

// markAll marks everything to be translated again.
func (h *Translator) markAll() {
	for _, e := range h.lbs {
		h.markLB(e)
	}
	for _, s := range h.sources {
		h.markSource(s)
	}
}
