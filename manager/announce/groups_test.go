package announce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/uplink"
)

// groupsOf returns n groups of a tenant.
func groupsOf(tenant byte, n int) (out []netip.Addr) {
	for i := range n {
		out = append(out, uplink.SolicitedNode(netip.AddrFrom16([16]byte{0x20, 1, 13: tenant, 14: byte(i >> 8), 15: byte(i)})))
	}
	return out
}

func TestATenantWithFewGroupsGetsAllOfThem(t *testing.T) {
	joined := map[netip.Addr]bool{}
	choose := func(of map[string][]netip.Addr, most int) map[string]int {
		chosen := fairShare(of, most, func(group netip.Addr) bool { return joined[group] })
		require.LessOrEqual(t, len(chosen), most)
		joined = chosen
		n := map[string]int{}
		for tenant, groups := range of {
			for _, group := range groups {
				if chosen[group] {
					n[tenant]++
				}
			}
		}
		return n
	}
	require.Equal(t, map[string]int{"hostile": 100}, choose(map[string][]netip.Addr{"hostile": groupsOf(1, 150)}, 100), "no other tenant needs groups")
	require.Equal(t, map[string]int{"hostile": 93, "a": 5, "b": 2}, choose(map[string][]netip.Addr{"hostile": groupsOf(1, 150), "a": groupsOf(2, 5), "b": groupsOf(3, 2)}, 100))
	require.Equal(t, map[string]int{"hostile": 49, "vile": 49, "b": 2}, choose(map[string][]netip.Addr{"hostile": groupsOf(1, 150), "vile": groupsOf(2, 99), "b": groupsOf(3, 2)}, 100))

	before := maps.Clone(joined)
	choose(map[string][]netip.Addr{"hostile": slices.Concat(groupsOf(0, 20), groupsOf(1, 150)), "vile": groupsOf(2, 99), "b": groupsOf(3, 2)}, 100)
	require.Equal(t, before, joined, "new addresses of the same tenant take the place of none")
}

func TestAGroupOfSeveralTenantsCountsOnce(t *testing.T) {
	both := groupsOf(1, 3)
	chosen := fairShare(map[string][]netip.Addr{"a": both, "b": slices.Clone(both), "c": groupsOf(2, 2)}, 4, func(netip.Addr) bool { return false })
	require.Len(t, chosen, 4)
	for _, group := range groupsOf(2, 2) {
		require.True(t, chosen[group])
	}
}

func TestGroupsAreSharedByTheTenantsOfAddresses(t *testing.T) {
	l := NewLayer2(Layer2Options{})
	announced := func(tenant string, n, first int) (out []netip.Addr) {
		for i := range n {
			a := netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:%x", (first+i)>>16, (first+i)&0xffff))
			l.SetTenant(a, tenant)
			l.owned[a] = true
			out = append(out, uplink.SolicitedNode(a))
		}
		return out
	}
	announced("hostile", 2*uplink.MaxGroups, 1)
	few := announced("z", 10, 3*uplink.MaxGroups)
	chosen := l.chosen(func(netip.Addr) bool { return false })
	require.Len(t, chosen, uplink.MaxGroups)
	for _, group := range few {
		require.True(t, chosen[group])
	}
	l.SetTenant(netip.MustParseAddr("2001:db8::1"), "")
	require.Len(t, l.tenants, 2*uplink.MaxGroups+9, "addresses without a tenant are removed")
}
