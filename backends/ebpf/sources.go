package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

// sources are the source addresses of flows of nat, by endpoint: this gateway's address towards the endpoint. The kernel chooses it by routes, rules and addresses,
// and is asked again when one of these may have changed.
type sources struct {
	// lookup asks the kernel.
	lookup func(netip.Addr) (netip.Addr, error)
	cache  map[netip.Addr]netip.Addr
}

func newSources(ask func(netip.Addr) (netip.Addr, error)) *sources {
	return &sources{lookup: ask, cache: map[netip.Addr]netip.Addr{}}
}

// sourceFor returns the source address for an endpoint.
func (s *sources) sourceFor(endpoint netip.Addr) (netip.Addr, error) {
	if source, known := s.cache[endpoint]; known {
		return source, nil
	}
	source, err := s.lookup(endpoint)
	if err == nil {
		s.cache[endpoint] = source
	}
	return source, err
}

// refresh asks the kernel again for these endpoints, and removes all others from the cache. It returns whether an address has changed. An endpoint without a route
// keeps its last address.
func (s *sources) refresh(endpoints map[netip.Addr]bool) (changed bool) {
	maps.DeleteFunc(s.cache, func(endpoint, _ netip.Addr) bool { return !endpoints[endpoint] })
	for endpoint := range endpoints {
		source, err := s.lookup(endpoint)
		if err != nil {
			continue
		}
		changed = changed || s.cache[endpoint] != source
		s.cache[endpoint] = source
	}
	return changed
}

// errPoolsNeeded asks for pools that an earlier process received: the maps do not have all that is needed to change them.
var errPoolsNeeded = errors.New("this gateway's address towards endpoints has changed, and the manager has to send the pools of an earlier process again")

// updateSources updates the source addresses of new flows after changes of routes and addresses.
func (b *Backend) updateSources() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if !b.routes.Due(now) {
		return nil
	}
	defer b.routes.MarkRead(now)
	if !b.sources.refresh(b.state.endpointAddresses()) {
		return b.endLostSources()
	}
	return errors.Join(b.applySources(), b.endLostSources())
}

// applySources writes the pools that have endpoints with another source address now. Such an endpoint gets a new number, so that connections go on with the address
// with which they began.
func (b *Backend) applySources() error {
	var errs []error
	number := 0
	for id, pool := range b.state.pools {
		n := pool.changedSources(b.sources.cache)
		if n == 0 {
			continue
		}
		number += n
		if pool.record == nil {
			errs = append(errs, errPoolsNeeded, b.kernel.apply(b.state.invalidatePool(id)))
			continue
		}
		p, err := b.state.planPool(*pool.record, b.sources.sourceFor)
		if err == nil {
			err = b.kernel.apply(p.writes)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("pool %s: this gateway's address towards its endpoints: %w", id, err))
			continue
		}
		p.commit()
	}
	if number > 0 {
		fmt.Fprintf(os.Stderr, "this gateway's address towards %d endpoints has changed: new flows come from the new address\n", number)
	}
	return errors.Join(append(errs, b.kernel.installTables())...)
}

// invalidateChangedSources invalidates the pools of an earlier process that have endpoints with another source address now.
func (b *Backend) invalidateChangedSources() error {
	b.sources.refresh(b.state.endpointAddresses())
	var errs []error
	for id, pool := range b.state.pools {
		if pool.changedSources(b.sources.cache) > 0 {
			errs = append(errs, b.kernel.apply(b.state.invalidatePool(id)))
		}
	}
	return errors.Join(append(errs, b.endLostSources())...)
}

// endLostSources ends flows whose source address this host does not have any more, since no answers reach it. Their endpoints are removed ones, or have another
// source address now. A client of such a connection gets a reset when it next sends a packet.
func (b *Backend) endLostSources() error {
	var lost []uint32
	own := map[netip.Addr]bool{}
	for handle, e := range b.state.removed {
		if source, known := b.sources.cache[e.address]; known && source != e.source {
			lost = append(lost, handle)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	addresses, err := dumps.Read(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		own[addrOf(a.IP)] = true
	}
	slices.Sort(lost)
	var errs []error
	for _, handle := range lost {
		if own[b.state.removed[handle].source] {
			continue
		}
		p := b.state.planFreeEndpoint(handle)
		if err := b.kernel.apply(p.writes); err != nil {
			errs = append(errs, err)
			continue
		}
		p.commit()
	}
	return errors.Join(errs...)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// endpointAddresses returns the addresses of the endpoints of pools, and of removed endpoints.
func (s *state) endpointAddresses() map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for _, e := range s.removed {
		all[e.address] = true
	}
	for _, pool := range s.pools {
		for _, e := range pool.endpoints {
			all[e.address] = true
		}
	}
	return all
}

// changedSources returns how many endpoints of the pool have another source address now.
func (p *poolState) changedSources(sources map[netip.Addr]netip.Addr) (n int) {
	for _, e := range p.endpoints {
		if source, known := sources[e.address]; known && source != e.source {
			n++
		}
	}
	return n
}
