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

// sources are this gateway's addresses on the ways to endpoints, to which it rewrites the sources of flows of nat. The kernel chooses them, by routes,
// rules and addresses. They are asked for again when one of those may have changed.
type sources struct {
	// ask asks the kernel.
	ask   func(netip.Addr) (netip.Addr, error)
	known map[netip.Addr]netip.Addr
}

func newSources(ask func(netip.Addr) (netip.Addr, error)) *sources {
	return &sources{ask: ask, known: map[netip.Addr]netip.Addr{}}
}

// towards is the address on the way to an endpoint.
func (s *sources) towards(endpoint netip.Addr) (netip.Addr, error) {
	if source, known := s.known[endpoint]; known {
		return source, nil
	}
	source, err := s.ask(endpoint)
	if err == nil {
		s.known[endpoint] = source
	}
	return source, err
}

// follow asks the kernel again for the addresses towards these endpoints, and forgets the addresses towards others. It tells whether an address has
// changed. Without a route to an endpoint, the last address stays.
func (s *sources) follow(endpoints map[netip.Addr]bool) (changed bool) {
	maps.DeleteFunc(s.known, func(endpoint, _ netip.Addr) bool { return !endpoints[endpoint] })
	for endpoint := range endpoints {
		source, err := s.ask(endpoint)
		if err != nil {
			continue
		}
		changed = changed || s.known[endpoint] != source
		s.known[endpoint] = source
	}
	return changed
}

// errGiveAgain asks for pools that an earlier process was given: what it was given does not tell how to change them.
var errGiveAgain = errors.New("this gateway's address towards endpoints is another one, and pools of an earlier process have to be given again")

// followSources has new flows come from the address that this gateway has on the way to their endpoint now.
func (b *Backend) followSources() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if !b.routes.Due(now) {
		return nil
	}
	defer b.routes.Asked(now)
	if !b.sources.follow(b.state.addresses()) {
		return b.endSourceless()
	}
	return errors.Join(b.changeSources(), b.endSourceless())
}

// changeSources plans pools anew with endpoints that are reached from another address. An endpoint that is, is another one for the programs: connections
// go on with the address that they began with.
func (b *Backend) changeSources() error {
	var errs []error
	number := 0
	for id, pool := range b.state.pools {
		n := pool.otherwise(b.sources.known)
		if n == 0 {
			continue
		}
		number += n
		if pool.model == nil {
			errs = append(errs, errGiveAgain, b.kernel.apply(b.state.doubt(id)))
			continue
		}
		p, err := b.state.planPool(*pool.model, b.sources.towards)
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
		fmt.Fprintf(os.Stderr, "this gateway's address on the way to %d endpoints is another one: new flows come from that\n", number)
	}
	return errors.Join(append(errs, b.kernel.placeTables())...)
}

// doubtSources has pools of an earlier process be given again whose endpoints are reached from another address now.
func (b *Backend) doubtSources() error {
	b.sources.follow(b.state.addresses())
	var errs []error
	for id, pool := range b.state.pools {
		if pool.otherwise(b.sources.known) > 0 {
			errs = append(errs, b.kernel.apply(b.state.doubt(id)))
		}
	}
	return errors.Join(append(errs, b.endSourceless())...)
}

// endSourceless ends the flows of endpoints that have left, or are reached from another address, where the host does not have the flows' address any
// more: no answer comes to it. Clients of connections are told by the next packet that they send.
func (b *Backend) endSourceless() error {
	var lost []uint32
	own := map[netip.Addr]bool{}
	for handle, e := range b.state.left {
		if source, known := b.sources.known[e.address]; known && source != e.source {
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
		own[plain(a.IP)] = true
	}
	slices.Sort(lost)
	var errs []error
	for _, handle := range lost {
		if own[b.state.left[handle].source] {
			continue
		}
		p := b.state.planFlowless(handle)
		if err := b.kernel.apply(p.writes); err != nil {
			errs = append(errs, err)
			continue
		}
		p.commit()
	}
	return errors.Join(errs...)
}

func plain(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// addresses are those of the endpoints of pools, and of endpoints that have left.
func (s *state) addresses() map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for _, e := range s.left {
		all[e.address] = true
	}
	for _, pool := range s.pools {
		for _, e := range pool.endpoints {
			all[e.address] = true
		}
	}
	return all
}

// otherwise is how many endpoints of the pool are reached from another address than the programs have.
func (p *poolState) otherwise(sources map[netip.Addr]netip.Addr) (n int) {
	for _, e := range p.endpoints {
		if source, known := sources[e.address]; known && source != e.source {
			n++
		}
	}
	return n
}
