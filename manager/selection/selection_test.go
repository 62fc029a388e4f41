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

func fast() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"backend": "ebpf"}}
}

func TestAPoolIsServedByTheGatewaysThatItChooses(t *testing.T) {
	s := New()
	s.SetPool("all", ranges(t, "192.0.2.0/25"), nil)
	s.SetPool("fast", ranges(t, "203.0.113.0/24", "2001:db8:f::/64"), fast())
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	s.SetGateway("b", map[string]string{"backend": "nftables"})
	require.Nil(t, s.ServingAddress(netip.MustParseAddr("192.0.2.1")), "all of them")
	require.Nil(t, s.ServingAddress(netip.MustParseAddr("198.51.100.1")), "of no pool any more")
	for _, address := range []string{"203.0.113.7", "2001:db8:f::7"} {
		serves := s.ServingAddress(netip.MustParseAddr(address))
		require.True(t, serves("a"))
		require.False(t, serves("b"))
		require.False(t, serves("unknown"))
	}
}

func TestAnAddressThatItsPoolHasNoMoreStaysWithThePoolsGateways(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.200")
	given := []ipam.Grant{{Address: address, Pool: "fast"}}
	s := New()
	s.SetPool("fast", ranges(t, "203.0.113.0/24"), fast())
	s.SetGateway("a", map[string]string{"backend": "ebpf"})
	before := s.Clone()
	s.SetHolder("one", given)
	s.SetHolder("two", given)
	s.SetPool("all", ranges(t, "203.0.113.0/24"), nil)
	require.NotNil(t, s.ServingAddress(address), "one that overlaps it changes nothing")
	s.DeletePool("all")
	s.SetPool("fast", ranges(t, "203.0.113.0/25"), fast())
	for _, is := range []*Selection{s, before} {
		require.True(t, is.ServingAddress(address)("a"))
		require.False(t, is.ServingAddress(address)("b"))
	}
	s.SetPool("other", ranges(t, "203.0.113.128/25"), nil)
	require.Nil(t, s.ServingAddress(address), "another pool has it now")
	s.DeletePool("other")
	s.SetHolder("one", nil)
	require.NotNil(t, s.ServingAddress(address), "the other one has it still")
	s.SetHolder("two", given)
	s.SetHolder("two", nil)
	require.Nil(t, s.ServingAddress(address))
	require.Empty(t, s.records.of)
	require.Empty(t, s.records.by)
}

func TestTheDigestFollowsWhatIsChosen(t *testing.T) {
	s := New()
	s.SetPool("all", ranges(t, "192.0.2.0/25"), nil)
	require.True(t, s.SetGateway("a", map[string]string{"backend": "ebpf"}))
	require.False(t, s.SetGateway("a", map[string]string{"backend": "ebpf"}))
	require.Empty(t, s.Digest(), "nothing is chosen")
	s.SetPool("fast", ranges(t, "203.0.113.0/24"), fast())
	one := s.Digest()
	require.NotEmpty(t, one)
	s.SetPool("all", ranges(t, "192.0.2.0/24"), nil)
	require.NotEqual(t, one, s.Digest(), "it may have addresses that another one had")
	one = s.Digest()
	require.True(t, s.SetGateway("a", nil))
	require.NotEqual(t, one, s.Digest())
	before := s.Clone()
	s.DeletePool("fast")
	require.Empty(t, s.Digest())
	require.NotEmpty(t, before.Digest(), "a clone stays as it is")
}
