package nftables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/phrase"
)

// requireForwarding says what to do when the host forwards nothing.
func requireForwarding() error {
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := requireSysctl(path, "so this host forwards nothing"); err != nil {
			return err
		}
	}
	return nil
}

func requireSysctl(path, consequence string) error {
	value, err := os.ReadFile("/proc/sys/" + path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without that family
	}
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", path, err)
	}
	if strings.TrimSpace(string(value)) == "0" {
		key := strings.ReplaceAll(path, "/", ".")
		return fmt.Errorf("sysctl %s is 0, %s: run 'sysctl -w %s=1' and make it permanent", key, consequence, key)
	}
	return nil
}

// requireDirect says why the frontend cannot be direct: the pool's endpoints must be neighbours of this host, since a router
// between them would send a packet for the VIP back.
func (t *table) requireDirect(f model.Frontend, e *egress) error {
	if err := requireSysctl("net/netfilter/nf_conntrack_tcp_loose", "so conntrack does not take up the client's half of a direct connection"); err != nil {
		return err
	}
	if p := t.state.pools[f.Pool]; p != nil {
		for _, endpoint := range p.endpoints {
			if err := e.requireNeighbour(endpoint.address); err != nil {
				return err
			}
		}
	}
	return nil
}

// requireNeighbours says why the pool cannot become what is asked, if a direct frontend uses it.
func (t *table) requireNeighbours(p model.Pool, at *egress) error {
	known := t.state.pools[p.ID]
	if known == nil || !t.state.hasDirect(known.mark) {
		return nil
	}
	for _, e := range p.Endpoints {
		if e.Address.Is4() != t.layout.v4 {
			return nil // the pool moves to the other family's table
		}
		if err := at.requireNeighbour(e.Address); err != nil {
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

// followDirect has packets of direct flows restored at the interfaces by which routes lead to their endpoints now, once routes have changed. It returns what
// is new of endpoints that no packet for a VIP can be handed to any more.
func (b *Backend) followDirect(now time.Time) string {
	b.busy.Lock()
	defer b.busy.Unlock()
	if !b.routes.Due(now) {
		return ""
	}
	defer b.routes.Asked(now)
	var problems []string
	for _, endpoint := range b.directEndpoints() {
		if err := b.egress.requireNeighbour(endpoint); err != nil {
			problems = append(problems, err.Error())
		}
	}
	before := b.strayed
	b.strayed = phrase.Few(problems, "; ")
	if b.strayed == before {
		return ""
	}
	return b.strayed
}

// directEndpoints are the addresses of the endpoints of direct frontends, sorted.
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

// requireNeighbour watches the interface to an endpoint, which must have the endpoint on its segment.
func (e *egress) requireNeighbour(address netip.Addr) error {
	routes, err := netlink.RouteGet(address.AsSlice())
	if err != nil {
		return fmt.Errorf("forwarding direct: no route to endpoint %s: %w", address, err)
	}
	route := routes[0]
	if len(route.Gw) > 0 {
		return fmt.Errorf("forwarding direct: endpoint %s is behind router %s, and not on a segment of this gateway; use nat", address, route.Gw)
	}
	link, err := netlink.LinkByIndex(route.LinkIndex)
	if err != nil {
		return fmt.Errorf("forwarding direct: interface to endpoint %s: %w", address, err)
	}
	return e.watch(link.Attrs().Name)
}
