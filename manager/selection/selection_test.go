package selection

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/ipam"
)

func ranges(t *testing.T, entries ...string) []ipam.Range {
	r, err := ipam.ParseRanges(entries, false)
	require.NoError(t, err)
	return r
}

func ebpfOnly() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"backend": "ebpf"}}
}

func TestAnAddressPoolIsServedByTheGatewaysThatItSelects(t *testing.T) {
	s := New()
	s.SetAddressPool("all", ranges(t, "192.0.2.0/25"), nil)
	s.SetAddressPool("fast", ranges(t, "203.0.113.0/24", "2001:db8:f::/64"), ebpfOnly())
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	s.SetGateway("b", map[string]string{"backend": "nftables"})
	require.Nil(t, s.ServingAddress(netip.MustParseAddr("192.0.2.1")), "its AddressPool has no selector")
	require.Nil(t, s.ServingAddress(netip.MustParseAddr("198.51.100.1")), "no AddressPool contains it")
	for _, address := range []string{"203.0.113.7", "2001:db8:f::7"} {
		serving := s.ServingAddress(netip.MustParseAddr(address))
		require.True(t, serving("a"))
		require.False(t, serving("b"))
		require.False(t, serving("unknown"))
	}
}

func TestAnAddressThatItsPoolNoLongerContainsStaysWithThePoolsGateways(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.200")
	allocations := []ipam.Allocation{{Address: address, Pool: "fast"}}
	s := New()
	s.SetAddressPool("fast", ranges(t, "203.0.113.0/24"), ebpfOnly())
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	before := s.Clone()
	s.SetAllocations("one", allocations)
	s.SetAllocations("two", allocations)
	s.SetAddressPool("all", ranges(t, "203.0.113.0/24"), nil)
	require.NotNil(t, s.ServingAddress(address), "an AddressPool that overlaps changes nothing")
	s.DeleteAddressPool("all")
	s.SetAddressPool("fast", ranges(t, "203.0.113.0/25"), ebpfOnly())
	for _, is := range []*Selection{s, before} {
		require.True(t, is.ServingAddress(address)("a"))
		require.False(t, is.ServingAddress(address)("b"))
	}
	s.SetAddressPool("other", ranges(t, "203.0.113.128/25"), nil)
	require.Nil(t, s.ServingAddress(address), "only another AddressPool contains it now")
	s.DeleteAddressPool("other")
	s.SetAllocations("one", nil)
	require.NotNil(t, s.ServingAddress(address), "its second owner still has it")
	s.SetAllocations("two", allocations)
	s.SetAllocations("two", nil)
	require.Nil(t, s.ServingAddress(address))
	require.Empty(t, s.allocations.byAddress)
	require.Empty(t, s.allocations.byOwner)
}

func TestTheDigestChangesWithPoolsAndGateways(t *testing.T) {
	s := New()
	s.SetAddressPool("all", ranges(t, "192.0.2.0/25"), nil)
	require.True(t, s.SetGateway("a", map[string]string{"backend": "ebpf"}))
	require.False(t, s.SetGateway("a", map[string]string{"backend": "ebpf"}))
	require.Empty(t, s.Digest(), "no AddressPool has a selector")
	s.SetAddressPool("fast", ranges(t, "203.0.113.0/24"), ebpfOnly())
	former := s.Digest()
	require.NotEmpty(t, former)
	s.SetAddressPool("all", ranges(t, "192.0.2.0/24"), nil)
	require.NotEqual(t, former, s.Digest(), "addresses may have moved between AddressPools")
	former = s.Digest()
	require.True(t, s.SetGateway("a", nil))
	require.NotEqual(t, former, s.Digest())
	before := s.Clone()
	s.DeleteAddressPool("fast")
	require.Empty(t, s.Digest())
	require.NotEmpty(t, before.Digest(), "the clone has not changed")
}

func TestASelectorThatIsInvalidSelectsNoGateway(t *testing.T) {
	s := New()
	s.SetAddressPool("odd", ranges(t, "203.0.113.0/24"), &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "backend", Operator: "Near"}}})
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	serving := s.Serving("odd")
	require.NotNil(t, serving, "all gateways would serve it")
	require.False(t, serving.By("a"))
}

func TestAnEmptySelectorSelectsAllGateways(t *testing.T) {
	s := New()
	s.SetAddressPool("all", ranges(t, "203.0.113.0/24"), &metav1.LabelSelector{})
	require.Nil(t, s.Serving("all"))
	require.Nil(t, s.Serving("no such pool"))
	require.True(t, s.Serving("all").By("any gateway"))
	require.Empty(t, s.Digest())
}

func TestASelectorMayNameLabelsThatGatewaysDoNotHave(t *testing.T) {
	s := New()
	s.SetAddressPool("others", ranges(t, "203.0.113.0/24"), &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "backend", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"ebpf"}}, {Key: "spare", Operator: metav1.LabelSelectorOpDoesNotExist}}})
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	s.SetGateway("b", map[string]string{"backend": "nftables"})
	s.SetGateway("c", map[string]string{"backend": "nftables", "spare": ""})
	for name, want := range map[string]bool{"a": false, "b": true, "c": false, "without labels": true} {
		require.Equal(t, want, s.Serving("others").By(name), name)
	}
	s.DeleteGateway("a")
	require.True(t, s.Serving("others").By("a"), "its labels are gone with it")
}

func TestAServingFollowsTheLabelsAndNotFormerPools(t *testing.T) {
	s := New()
	s.SetAddressPool("fast", ranges(t, "203.0.113.0/24"), ebpfOnly())
	serving := s.Serving("fast")
	require.False(t, serving.By("a"))
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	require.True(t, serving.By("a"))
	frozen := s.Clone()
	s.SetGateway("a", map[string]string{"backend": "nftables"})
	s.SetAddressPool("fast", ranges(t, "203.0.113.0/24"), nil)
	require.False(t, serving.By("a"))
	require.Nil(t, s.Serving("fast"))
	require.True(t, frozen.Serving("fast").By("a"), "a clone keeps the labels and pools of its time")
}

func TestAnAddressOfTwoPoolsBelongsToTheOneThatItWasAllocatedFrom(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.7")
	s := New()
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	s.SetAddressPool("a-first", ranges(t, "203.0.113.0/24"), nil)
	s.SetAddressPool("b-fast", ranges(t, "203.0.113.0/24"), ebpfOnly())
	require.Nil(t, s.ServingAddress(address), "without an allocation it is the first by name")
	s.SetAllocations("web", []ipam.Allocation{{Address: address, Pool: "b-fast"}})
	require.True(t, s.ServingAddress(address).By("a"))
	require.False(t, s.ServingAddress(address).By("b"))
	s.SetAllocations("web", []ipam.Allocation{{Address: address, Pool: "a-first"}})
	require.Nil(t, s.ServingAddress(address), "it was allocated again")
	require.Len(t, s.allocations.byAddress, 1)
}

func TestTheDigestDoesNotDependOnTheOrderOfEvents(t *testing.T) {
	made := func(names ...string) *Selection {
		s := New()
		for _, name := range names {
			s.SetAddressPool(name, ranges(t, "203.0.113.0/24"), ebpfOnly())
			s.SetGateway(name, map[string]string{"backend": name, "zone": "z"})
		}
		return s
	}
	require.Equal(t, made("a", "b", "c").Digest(), made("c", "a", "b").Digest())
	require.NotEqual(t, made("a", "b").Digest(), made("a", "b", "c").Digest())
	without := made("a", "b", "c")
	without.DeleteGateway("c")
	without.DeleteAddressPool("c")
	require.Equal(t, made("a", "b").Digest(), without.Digest())
	require.Equal(t, made("a", "b").Digest(), made("a", "b").Clone().Digest())
}
