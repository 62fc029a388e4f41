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

// where is a gateway's address on the segment; it is named by a letter.
func where(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, name[0]})
}

// others are gateways that are there; one in capitals has failed.
func others(names string) (out []membership.Peer) {
	for _, name := range strings.Fields(names) {
		lower := strings.ToLower(name)
		out = append(out, membership.Peer{Name: lower, RedirectAddresses: []netip.Addr{where(lower)}, Active: name == lower})
	}
	return out
}

// circle is a ring with what its gateway serves.
type circle struct {
	*testing.T
	*BGP
	selection *selection.Selection
	addresses map[netip.Addr]bool
	dead      []netip.Addr
	now       time.Time
}

func newCircle(t *testing.T, self string, addresses ...netip.Addr) *circle {
	c := &circle{T: t, selection: selection.New(), addresses: map[netip.Addr]bool{}, now: time.Now()}
	c.BGP = NewBGP(self, time.Minute, func(addresses []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(c.dead, a) })
	})
	for _, a := range addresses {
		c.addresses[a] = true
	}
	return c
}

// sees looks at the others, tells the dataplane of what has changed, and returns that.
func (c *circle) sees(others []membership.Peer) []netip.Addr {
	c.Select(c.selection, c.now)
	changed := c.Update(others, c.addresses, c.now)
	for _, a := range changed {
		c.Send(a)
	}
	return changed
}

func (c *circle) mustAsk(address netip.Addr, next string, asks uint8) {
	c.Helper()
	require.Equal(c, model.Handover{Next: where(next), Asks: asks}, c.of(address))
}

func TestEachGatewayAsksTheNextAndTheLastTheFirst(t *testing.T) {
	one := netip.MustParseAddr("203.0.113.1")
	for self, next := range map[string]string{"a": "b", "b": "c", "c": "d", "d": "a"} {
		c := newCircle(t, self, one)
		all := slices.DeleteFunc(others("a b c d"), func(o membership.Peer) bool { return o.Name == self })
		require.Equal(t, []netip.Addr{one}, c.sees(all))
		c.mustAsk(one, next, 3)
		require.Empty(t, c.sees(all), "nothing new")
	}
	c := newCircle(t, "a", one)
	require.Empty(t, c.sees(nil))
	require.Zero(t, c.of(one), "there is nobody to ask")
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("%c", 'b'+i))
	}
	c.sees(others(strings.Join(many, " ")))
	c.mustAsk(one, "b", model.MaxAsks)
}

func TestOneThatIsGoneIsAskedForAWhileAsLongAsItsHostIsThere(t *testing.T) {
	one := netip.MustParseAddr("203.0.113.1")
	c := newCircle(t, "a", one)
	c.sees(others("b c"))
	require.Empty(t, c.sees(others("B c")), "its dataplane works on")
	require.Equal(t, c.now.Add(time.Minute), c.Expires())
	c.dead = []netip.Addr{where("b")}
	require.Equal(t, []netip.Addr{one}, c.sees(others("B c")))
	c.mustAsk(one, "c", 1)
	c.dead = nil
	c.sees(others("B c"))
	c.mustAsk(one, "b", 2)
	c.now = c.now.Add(time.Minute)
	require.Equal(t, []netip.Addr{one}, c.sees(others("B c")), "long enough")
	c.mustAsk(one, "c", 1)
	require.Zero(t, c.Expires())
	c.sees(others("b c"))
	c.mustAsk(one, "b", 2)
	c.sees([]membership.Peer{{Name: "b", RedirectAddresses: []netip.Addr{where("b")}, Active: true, Draining: true}})
	require.NotZero(t, c.Expires(), "it is about to leave")
}

func TestOneThatHasNoAddressOfTheFamilyIsNotAsked(t *testing.T) {
	six := netip.MustParseAddr("2001:db8:f::1")
	c := newCircle(t, "a", six)
	require.Empty(t, c.sees(others("b c")))
	require.Zero(t, c.of(six))
}

func TestOneThatAPoolDoesNotChooseAnyMoreIsAskedForAWhile(t *testing.T) {
	in, out := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("198.51.100.1")
	ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
	require.NoError(t, err)
	c := newCircle(t, "a", in, out)
	c.selection.SetGateway("b", map[string]string{"set": "old"})
	c.selection.SetGateway("c", map[string]string{"set": "new"})
	c.selection.SetPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"set": "old"}})
	c.sees(others("b c"))
	c.mustAsk(in, "b", 1)
	c.mustAsk(out, "b", 2)
	c.selection.SetPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"set": "new"}})
	require.Equal(t, []netip.Addr{in}, c.sees(others("b c")))
	c.mustAsk(in, "b", 2)
	require.Equal(t, c.now.Add(time.Minute), c.Expires())
	c.now = c.now.Add(time.Minute)
	require.Equal(t, []netip.Addr{in}, c.sees(others("b c")))
	c.mustAsk(in, "c", 1)
	require.Zero(t, c.Expires())
}

func TestWithoutHandoverNobodyIsAsked(t *testing.T) {
	one := netip.MustParseAddr("203.0.113.1")
	c := newCircle(t, "a", one)
	c.limit = 0
	require.Empty(t, c.sees(others("b c")))
	require.Zero(t, c.of(one))
}
