package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/membership"
	"kubelb.k8c.io/manager/selection"
)

// addressOf returns the address of a gateway on the segment. The name is a letter.
func addressOf(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, name[0]})
}

// peersOf returns the peers with these names. A peer with a capital letter has failed.
func peersOf(names string) (out []membership.Peer) {
	for _, name := range strings.Fields(names) {
		lower := strings.ToLower(name)
		out = append(out, membership.Peer{Name: lower, RedirectAddresses: []netip.Addr{addressOf(lower)}, Active: name == lower})
	}
	return out
}

// bgpTest is a BGP strategy with its input.
type bgpTest struct {
	*testing.T
	*BGP
	selection *selection.Selection
	addresses map[netip.Addr]bool
	dead      []netip.Addr
	now       time.Time
}

func newBGPTest(t *testing.T, self string, addresses ...netip.Addr) *bgpTest {
	c := &bgpTest{T: t, selection: selection.New(), addresses: map[netip.Addr]bool{}, now: time.Now()}
	c.BGP = NewBGP(self, time.Minute, func(addresses []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(c.dead, a) })
	})
	for _, a := range addresses {
		c.addresses[a] = true
	}
	return c
}

// update updates the redirects, sends the changed ones to the dataplane, and returns their addresses.
func (c *bgpTest) update(others []membership.Peer) []netip.Addr {
	c.Select(c.selection, c.now)
	changed := c.Update(others, c.addresses, c.now)
	for _, a := range changed {
		c.RedirectOf(a)
	}
	return changed
}

func (c *bgpTest) requireRedirect(address netip.Addr, next string, limit uint8) {
	c.Helper()
	require.Equal(c, model.Redirect{Next: addressOf(next), Limit: limit}, c.redirectOf(address))
}

func TestEachGatewayRedirectsToTheNextAndTheLastToTheFirst(t *testing.T) {
	one := netip.MustParseAddr("203.0.113.1")
	for self, next := range map[string]string{"a": "b", "b": "c", "c": "d", "d": "a"} {
		c := newBGPTest(t, self, one)
		all := slices.DeleteFunc(peersOf("a b c d"), func(o membership.Peer) bool { return o.Name == self })
		require.Equal(t, []netip.Addr{one}, c.update(all))
		c.requireRedirect(one, next, 3)
		require.Empty(t, c.update(all), "nothing has changed")
	}
	c := newBGPTest(t, "a", one)
	require.Empty(t, c.update(nil))
	require.Zero(t, c.redirectOf(one), "there is no next hop")
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("%c", 'b'+i))
	}
	c.update(peersOf(strings.Join(many, " ")))
	c.requireRedirect(one, "b", model.MaxRedirects)
}

func TestAFailedGatewayIsANextHopForAWhileIfItsHostAnswers(t *testing.T) {
	one := netip.MustParseAddr("203.0.113.1")
	c := newBGPTest(t, "a", one)
	c.update(peersOf("b c"))
	require.Empty(t, c.update(peersOf("B c")), "its dataplane still works")
	require.Equal(t, c.now.Add(time.Minute), c.NextExpiry())
	c.dead = []netip.Addr{addressOf("b")}
	require.Equal(t, []netip.Addr{one}, c.update(peersOf("B c")))
	c.requireRedirect(one, "c", 1)
	c.dead = nil
	c.update(peersOf("B c"))
	c.requireRedirect(one, "b", 2)
	c.now = c.now.Add(time.Minute)
	require.Equal(t, []netip.Addr{one}, c.update(peersOf("B c")), "the limit is over")
	c.requireRedirect(one, "c", 1)
	require.Zero(t, c.NextExpiry())
	c.update(peersOf("b c"))
	c.requireRedirect(one, "b", 2)
	c.update([]membership.Peer{{Name: "b", RedirectAddresses: []netip.Addr{addressOf("b")}, Active: true, Draining: true}})
	require.NotZero(t, c.NextExpiry(), "it drains")
}

func TestAGatewayWithoutAnAddressOfTheFamilyIsNoNextHop(t *testing.T) {
	six := netip.MustParseAddr("2001:db8:f::1")
	c := newBGPTest(t, "a", six)
	require.Empty(t, c.update(peersOf("b c")))
	require.Zero(t, c.redirectOf(six))
}

func TestAGatewayThatAPoolNoLongerSelectsIsANextHopForAWhile(t *testing.T) {
	in, out := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("198.51.100.1")
	ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
	require.NoError(t, err)
	c := newBGPTest(t, "a", in, out)
	c.selection.SetGateway("b", map[string]string{"set": "old"})
	c.selection.SetGateway("c", map[string]string{"set": "new"})
	c.selection.SetAddressPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"set": "old"}})
	c.update(peersOf("b c"))
	c.requireRedirect(in, "b", 1)
	c.requireRedirect(out, "b", 2)
	c.selection.SetAddressPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"set": "new"}})
	require.Equal(t, []netip.Addr{in}, c.update(peersOf("b c")))
	c.requireRedirect(in, "b", 2)
	require.Equal(t, c.now.Add(time.Minute), c.NextExpiry())
	c.now = c.now.Add(time.Minute)
	require.Equal(t, []netip.Addr{in}, c.update(peersOf("b c")))
	c.requireRedirect(in, "c", 1)
	require.Zero(t, c.NextExpiry())
}

func TestWithoutHandoverNothingIsRedirected(t *testing.T) {
	one := netip.MustParseAddr("203.0.113.1")
	c := newBGPTest(t, "a", one)
	c.limit = 0
	require.Empty(t, c.update(peersOf("b c")))
	require.Zero(t, c.redirectOf(one))
}
