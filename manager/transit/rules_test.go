package transit

import (
	"net"
	"net/netip"
	"testing"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

func TestTheSegmentOfEachNextHopOfADefaultRouteIsFound(t *testing.T) {
	var before, several, narrow, six []string
	inHost(t, func(h *host) {
		before = h.segments()
		hop := func(name string, gateway ...byte) *netlink.NexthopInfo {
			link, err := netlink.LinkByName(name)
			h.try(func() error { return err })
			if err != nil {
				return nil
			}
			return &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Gw: gateway}
		}
		_, all, err := net.ParseCIDR("0.0.0.0/0")
		h.try(func() error { return err })
		both := &netlink.Route{Dst: all, MultiPath: []*netlink.NexthopInfo{hop("nodes", 198, 51, 100, 2), hop("pods", 10, 244, 9, 2)}}
		h.try(func() error { return netlink.RouteAdd(both) })
		several = h.segments()
		h.try(func() error { return netlink.RouteDel(both) })
		h.try(func() error {
			_, network, err := net.ParseCIDR("192.0.2.128/25")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Dst: network, LinkIndex: hop("nodes").LinkIndex})
		})
		narrow = h.segments()
		h.try(func() error {
			_, all, err := net.ParseCIDR("::/0")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Dst: all, LinkIndex: hop("pods").LinkIndex})
		})
		six = h.segments()
	})
	require.Equal(t, []string{"clients"}, before)
	require.Equal(t, []string{"clients", "nodes", "pods"}, several)
	require.Equal(t, []string{"clients"}, narrow, "a route to one network is no default route")
	require.Equal(t, []string{"clients", "pods"}, six)
}

func TestNATOfAnyProgramTracksConnections(t *testing.T) {
	says := map[string]bool{}
	inHost(t, func(h *host) {
		tracks := func(what string) {
			h.try(func() error {
				is, err := TracksConnections()
				says[what] = is
				return err
			})
		}
		c, err := nft.New()
		h.try(func() error { return err })
		table := c.AddTable(&nft.Table{Name: "other", Family: nft.TableFamilyIPv6})
		c.AddChain(&nft.Chain{Name: "filter", Table: table, Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookForward, Priority: nft.ChainPriorityFilter})
		tracks("nothing")
		h.try(c.Flush)
		tracks("a filter")
		c.AddChain(&nft.Chain{Name: "nat", Table: table, Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPostrouting, Priority: nft.ChainPriorityNATSource})
		h.try(c.Flush)
		tracks("NAT of IPv6")
	})
	require.Equal(t, map[string]bool{"nothing": false, "a filter": false, "NAT of IPv6": true}, says)
}

// The former process may have had other rules.
func TestAFilterReplacesTheTableOfAFormerProcess(t *testing.T) {
	var former, present string
	inHost(t, func(h *host) {
		h.try(func() error {
			return (&Filter{}).Apply(Rules{Segments: []string{"clients", "nodes"}, Direct: []netip.Addr{netip.MustParseAddr("203.0.113.1")}})
		})
		former = h.rules()
		h.try(func() error { return (&Filter{}).Apply(Rules{Segments: []string{"clients"}}) })
		present = h.rules()
	})
	require.Contains(t, former, `"nodes"`)
	require.Contains(t, former, "203.0.113.1")
	require.Contains(t, present, `"clients"`)
	require.NotContains(t, present, `"nodes"`)
	require.NotContains(t, present, "203.0.113.1")
}

func TestRulesThatDifferInAnythingAreApplied(t *testing.T) {
	of := func() Rules {
		return Rules{Segments: []string{"eth0"}, Direct: []netip.Addr{netip.MustParseAddr("203.0.113.1")}, Forbidden: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, Tracked: true}
	}
	require.True(t, of().equal(of()))
	for what, change := range map[string]func(*Rules){
		"segments": func(r *Rules) { r.Segments = []string{"eth1"} }, "no segment": func(r *Rules) { r.Segments = nil }, "direct": func(r *Rules) { r.Direct = nil },
		"forbidden": func(r *Rules) { r.Forbidden = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/13")} }, "tracked": func(r *Rules) { r.Tracked = false },
	} {
		other := of()
		change(&other)
		require.False(t, of().equal(other), what)
	}
}

// An end of an interval is the address behind it, which the last network of a family does not have.
func TestForbiddenNetworksAreIntervalsOfTheirFamily(t *testing.T) {
	networks := func(texts ...string) (out []netip.Prefix) {
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	for says, c := range map[string]struct {
		networks  []netip.Prefix
		four, six []string
	}{
		"nothing":                {nil, nil, nil},
		"one of each":            {networks("10.0.0.0/8", "fd00::/8"), []string{"10.0.0.0", "11.0.0.0 end"}, []string{"fd00::", "fe00:: end"}},
		"one within another":     {networks("10.0.0.0/8", "10.7.0.0/16"), []string{"10.0.0.0", "11.0.0.0 end"}, nil},
		"two that are adjacent":  {networks("10.0.0.0/9", "10.128.0.0/9"), []string{"10.0.0.0", "11.0.0.0 end"}, nil},
		"the last of its family": {networks("240.0.0.0/4", "ff00::/8"), []string{"240.0.0.0"}, []string{"ff00::"}},
		"all addresses":          {networks("0.0.0.0/0", "::/0"), []string{"0.0.0.0"}, []string{"::"}},
	} {
		require.Equal(t, c.four, asTexts(families[0].intervals(c.networks)), says)
		require.Equal(t, c.six, asTexts(families[1].intervals(c.networks)), says)
	}
	direct := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
	require.Equal(t, []string{"203.0.113.1"}, asTexts(families[0].elements(direct)))
	require.Equal(t, []string{"2001:db8::1"}, asTexts(families[1].elements(direct)))
}

func asTexts(elements []nft.SetElement) (out []string) {
	for _, e := range elements {
		a, _ := netip.AddrFromSlice(e.Key)
		out = append(out, a.String()+map[bool]string{true: " end"}[e.IntervalEnd])
	}
	return out
}

func TestRoutesAreReadAgainForOtherEndpointsAndNowAndThen(t *testing.T) {
	endpoints, others := []netip.Addr{netip.MustParseAddr("203.0.113.11")}, []netip.Addr{netip.MustParseAddr("203.0.113.12")}
	seen := map[string][]string{}
	inHost(t, func(h *host) {
		k := &Reconciler{Interfaces: []string{"clients"}}
		keep := func(what string, endpoints []netip.Addr) {
			h.try(func() error { return k.Update(endpoints, nil) })
			seen[what] = k.segments
		}
		keep("at first", endpoints)
		h.try(func() error {
			link, err := netlink.LinkByName("nodes")
			if err != nil {
				return err
			}
			_, network, err := net.ParseCIDR("203.0.113.0/24")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Dst: network, LinkIndex: link.Attrs().Index})
		})
		keep("a moment later", endpoints)
		keep("other endpoints", others)
		k.segments = nil
		keep("the same endpoints", others)
		k.checked = k.checked.Add(-routeInterval / 2)
		keep("before the interval is over", others)
		k.checked = k.checked.Add(-routeInterval / 2)
		keep("after the interval", others)
	})
	require.Equal(t, map[string][]string{"at first": {"clients"}, "a moment later": {"clients"}, "other endpoints": {"clients", "nodes"}, "the same endpoints": nil, "before the interval is over": nil, "after the interval": {"clients", "nodes"}}, seen)
}
