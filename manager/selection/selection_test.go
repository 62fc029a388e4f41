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
