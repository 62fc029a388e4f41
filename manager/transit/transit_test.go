package transit

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

// host is a network namespace with the interfaces clients, nodes and pods.
type host struct {
	t   *testing.T
	err error
}

// inHost runs f on a host of its own.
func inHost(t *testing.T, f func(h *host)) {
	t.Helper()
	h := &host{t: t}
	preflighttest.InNetworkNamespace(t, func() {
		h.plug("clients", "192.0.2.1/24")
		h.plug("nodes", "198.51.100.1/24")
		h.plug("pods", "10.244.9.1/24")
		if h.err == nil {
			f(h)
		}
	})
	require.NoError(t, h.err)
}

// plug adds an interface. After a failure it does nothing.
func (h *host) plug(name, address string) {
	h.try(func() error { return preflighttest.Plug(name, address) })
}

func (h *host) try(f func() error) {
	if h.err == nil {
		h.err = f()
	}
}

// rules returns the rules of the table as nft lists them, without counters.
func (h *host) rules() string {
	out, err := exec.Command("nft", "--stateless", "list", "ruleset").CombinedOutput()
	if err != nil && h.err == nil {
		h.err = fmt.Errorf("%w: %s", err, out)
	}
	return string(out)
}

func TestSegmentsAreInterfacesOfClientsEndpointsAndDefaultRoutes(t *testing.T) {
	var none, some, routed []string
	inHost(t, func(h *host) {
		none = h.segments()
		some = h.segments("198.51.100.11", "198.51.100.12", "203.0.113.7", "127.0.0.1")
		h.try(func() error {
			link, err := netlink.LinkByName("pods")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: []byte{10, 244, 9, 2}})
		})
		routed = h.segments()
	})
	require.Equal(t, []string{"clients"}, none)
	require.Equal(t, []string{"clients", "nodes"}, some)
	require.Equal(t, []string{"clients", "pods"}, routed)
}

func (h *host) segments(endpoints ...string) (names []string) {
	var addresses []netip.Addr
	for _, e := range endpoints {
		addresses = append(addresses, netip.MustParseAddr(e))
	}
	h.try(func() (err error) {
		names, err = Segments([]string{"clients"}, addresses)
		return err
	})
	return names
}

func TestTheContentOfTheTable(t *testing.T) {
	endpoints := []netip.Addr{netip.MustParseAddr("198.51.100.11")}
	direct := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:f::1")}
	var plain, tracked, router, ended string
	inHost(t, func(h *host) {
		k := &Reconciler{Interfaces: []string{"clients"}, Forbidden: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("10.96.7.0/24"),
			netip.MustParsePrefix("10.112.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}}
		h.try(func() error { return k.Update(endpoints, nil) })
		plain = h.rules()
		h.try(func() error {
			return exec.Command("nft", "add table ip other; add chain ip other nat { type nat hook prerouting priority -100; }").Run()
		})
		h.try(func() error { return k.Update(endpoints, direct) })
		tracked = h.rules()
		h.try(func() error { return (&Reconciler{Router: true}).Update(endpoints, direct) })
		router = h.rules()
		h.try(func() error { return k.Update(endpoints, direct) })
		h.try(k.Remove)
		h.try(k.Remove)
		ended = h.rules()
	})
	require.NotContains(t, plain, "ct status", "to ask about connections has all be tracked")
	require.Contains(t, plain, `iifname @segments oifname @segments counter drop`)
	require.Contains(t, plain, `"clients"`)
	require.Contains(t, plain, `"nodes"`)
	require.NotContains(t, plain, `"pods"`)
	require.Contains(t, tracked, "ct status dnat accept")
	for _, rules := range []string{plain, tracked} {
		require.Contains(t, rules, "elements = { 10.96.0.0-10.112.255.255,")
		require.Contains(t, rules, "10.244.0.0/16 }")
		require.Contains(t, rules, "elements = { fd00:10:96::/112 }")
		require.Contains(t, rules, "type filter hook prerouting priority mangle")
		require.Contains(t, rules, "iifname @segments ip daddr @forbidden4 fib daddr type local accept")
		require.Contains(t, rules, "iifname @segments ip daddr @forbidden4 fib daddr oifname @segments counter drop")
	}
	require.Contains(t, tracked, "203.0.113.1")
	require.Contains(t, tracked, "2001:db8:f::1")
	for _, rules := range []string{router, ended} {
		require.NotContains(t, rules, tableName)
		require.Contains(t, rules, "table ip other")
	}
}

func TestOnlyAMissingTableIsMadeAgain(t *testing.T) {
	endpoints := []netip.Addr{netip.MustParseAddr("198.51.100.11")}
	var again, alone string
	inHost(t, func(h *host) {
		k := &Reconciler{Interfaces: []string{"clients"}}
		h.try(func() error { return k.Update(endpoints, nil) })
		h.try(func() error { return exec.Command("nft", "add rule inet "+tableName+" forward accept").Run() })
		h.try(func() error { return k.Update(endpoints, nil) })
		alone = h.rules()
		h.try(func() error { return exec.Command("nft", "delete table inet "+tableName).Run() })
		h.try(func() error { return k.Update(endpoints, nil) })
		again = h.rules()
	})
	require.Contains(t, alone, "drop\n\t\taccept", "it was not written again")
	require.Contains(t, again, `iifname @segments oifname @segments counter drop`)
}
