package transit

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	nft "github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
)

// Segments returns the interfaces of this host that are named, or lead to an endpoint, or have a default route, sorted.
func Segments(named []string, endpoints []netip.Addr) ([]string, error) {
	numbers := map[int]bool{}
	for _, endpoint := range endpoints {
		routes, err := netlink.RouteGet(endpoint.AsSlice())
		if err != nil {
			continue // there is no route to the endpoint, so other hosts cannot reach it by this host
		}
		for _, r := range routes {
			numbers[r.LinkIndex] = true
		}
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := addDefaults(f, numbers); err != nil {
			return nil, err
		}
	}
	names := map[string]bool{}
	for _, name := range named {
		names[name] = true
	}
	for number := range numbers {
		link, err := netlink.LinkByIndex(number)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue // the interface has just gone
		}
		if err != nil {
			return nil, fmt.Errorf("read interface %d: %w", number, err)
		}
		if link.Attrs().Name != "lo" {
			names[link.Attrs().Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// addDefaults adds the interfaces of default routes, also of routes with several next hops. An incomplete list is an error: the gateway would be a router
// for the interfaces that are missing.
func addDefaults(family int, numbers map[int]bool) error {
	routes, err := dumps.Read(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !isDefault(r) {
			continue
		}
		if r.LinkIndex > 0 {
			numbers[r.LinkIndex] = true
		}
		for _, hop := range r.MultiPath {
			numbers[hop.LinkIndex] = true
		}
	}
	return nil
}

func isDefault(r netlink.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// TracksConnections reports whether this host has chains for NAT, of nftables or of iptables, which turn on connection tracking.
func TracksConnections() (bool, error) {
	for _, path := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"} {
		tables, err := os.ReadFile(path)
		if err == nil && slices.Contains(strings.Fields(string(tables)), "nat") {
			return true, nil
		}
	}
	c, err := nft.New()
	if err != nil {
		return false, fmt.Errorf("connect to nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return false, fmt.Errorf("list nftables chains (needs CAP_NET_ADMIN): %w", err)
	}
	return slices.ContainsFunc(chains, func(chain *nft.Chain) bool { return chain.Type == nft.ChainTypeNAT }), nil
}
