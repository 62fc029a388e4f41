package nftables

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/backends/dataplane/routes"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/phrase"
)

// checkForwarding returns an error if this host does not forward packets of both families. A kernel may lack a family.
func checkForwarding() error {
	for _, v4 := range []bool{true, false} {
		if err := (preflight.Host{}).RequireForwarding(v4); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// checkDirect returns an error if the frontend cannot be direct. All endpoints of its pool must be on segments of this gateway: a router in between would
// send packets for the VIP back.
func (t *table) checkDirect(f model.Frontend, e *egress) error {
	err := preflight.Host{}.RequireSysctl("net/netfilter/nf_conntrack_tcp_loose", "so connection tracking does not accept a direct connection, of which it sees only the client's packets")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if p := t.state.pools[f.Pool]; p != nil {
		for _, endpoint := range p.endpoints {
			if err := e.checkOnLink(endpoint.address); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkPoolOnLink returns an error if a direct frontend uses the pool, and an endpoint is not on a segment of this gateway.
func (t *table) checkPoolOnLink(p model.Pool, at *egress) error {
	known := t.state.pools[p.ID]
	if known == nil || !t.state.hasDirect(known.mark) {
		return nil
	}
	for _, e := range p.Endpoints {
		if e.Address.Is4() != t.layout.v4 {
			return nil // the pool moves to the other family's table
		}
		if err := at.checkOnLink(e.Address); err != nil {
			return err
		}
	}
	return nil
}

func (s *state) hasDirect(pool uint32) bool {
	for _, f := range s.frontends {
		if f.pool == pool && f.forwarding == model.Direct {
			return true
		}
	}
	return false
}

// followDirectRoutes adds the rules that direct flows need at the interfaces to their endpoints, after routes have changed. It returns the problems of endpoints that
// are not on a segment of this gateway any more, if these have changed.
func (b *Backend) followDirectRoutes(now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.routes.Due(now) {
		return ""
	}
	defer b.routes.MarkRead(now)
	var problems []string
	for _, endpoint := range b.directEndpoints() {
		if err := b.egress.checkOnLink(endpoint); err != nil {
			problems = append(problems, err.Error())
		}
	}
	before := b.directProblem
	b.directProblem = phrase.Few(problems, "; ")
	if b.directProblem == before {
		return ""
	}
	return b.directProblem
}

// directEndpoints returns the addresses of the endpoints of direct frontends, sorted.
func (b *Backend) directEndpoints() []netip.Addr {
	all := map[netip.Addr]bool{}
	for _, t := range b.tables {
		pools := map[uint32]bool{}
		for _, f := range t.state.frontends {
			pools[f.pool] = pools[f.pool] || f.forwarding == model.Direct
		}
		for _, p := range t.state.pools {
			if !pools[p.mark] {
				continue
			}
			for _, e := range p.endpoints {
				all[e.address] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), netip.Addr.Compare)
}

// checkOnLink returns an error if the endpoint is not on a segment of this gateway. Otherwise it ensures the rules at the interface to it.
func (e *egress) checkOnLink(address netip.Addr) error {
	index, err := routes.OnLink(address)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Errorf("forwarding direct: interface to endpoint %s: %w", address, err)
	}
	return e.ensureChain(link.Attrs().Name)
}
