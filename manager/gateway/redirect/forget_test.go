package redirect

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
	"kubelb.k8c.io/manager/membership"
)

func TestAnAddressThatTheDataplaneDoesNotHoldAnyMoreIsForgotten(t *testing.T) {
	vip, now := netip.MustParseAddr("203.0.113.1"), time.Now()
	l := NewLayer2(time.Minute, func(addresses []netip.Addr) []netip.Addr { return addresses })
	peers := peersOf("b")
	l.SetOwner(vip, "b", "me", now)
	l.SetOwner(vip, "me", "me", now)
	l.Update(peers, nil, now)
	require.Equal(t, 1, l.FormerCount())
	require.Equal(t, addressOf("b"), l.RedirectOf(vip).Next)
	l.Remove(vip)
	require.Zero(t, l.FormerCount())
	require.Zero(t, l.RedirectOf(vip))
	require.Zero(t, l.NextExpiry())
	l.SetOwner(vip, "me", "me", now)
	require.Empty(t, l.Update(peers, nil, now), "nobody had the address since")

	b := newBGPTest(t, "a", vip)
	b.update(peersOf("b"))
	require.Empty(t, b.update(peersOf("b")))
	b.Remove(vip)
	b.lastState = ""
	require.Equal(t, []netip.Addr{vip}, b.update(peersOf("b")), "a dataplane that holds it again gets its redirect")
	require.Zero(t, b.FormerCount(), "no gateway owns an address")
}

func TestAnEqualSelectionOfGatewaysIsNoChange(t *testing.T) {
	c := newBGPTest(t, "a")
	began := c.now
	c.update(nil)
	require.Equal(t, began, c.SelectedSince())
	c.now = began.Add(time.Second)
	c.update(nil)
	require.Equal(t, began, c.SelectedSince())
	c.selection.SetAddressPool("pool", nil, &metav1.LabelSelector{MatchLabels: map[string]string{"set": "new"}})
	c.update(nil)
	require.Equal(t, c.now, c.SelectedSince())
}

// An operator, or a program, may change AddressPools all the time.
func TestTheNumberOfFormerSelectionsIsBoundedAndTheLatestStay(t *testing.T) {
	c := newBGPTest(t, "a")
	for n := range 2 * maxFormerSelections {
		c.now = c.now.Add(time.Second)
		c.selection.SetAddressPool("pool", nil, &metav1.LabelSelector{MatchLabels: map[string]string{"set": string(rune('a' + n))}})
		c.update(nil)
	}
	require.Len(t, c.formerSelections, maxFormerSelections)
	require.Equal(t, c.now.Add(c.limit), c.formerSelections[maxFormerSelections-1].until)
	require.Equal(t, c.now.Add(c.limit-(maxFormerSelections-1)*time.Second), c.NextExpiry())
}

func TestAPeerThatHasGoneIsForgottenAndMayComeBack(t *testing.T) {
	one := netip.MustParseAddr("203.0.113.1")
	c := newBGPTest(t, "a", one)
	c.update(peersOf("B c"))
	c.now = c.now.Add(time.Minute)
	c.update(peersOf("B c"))
	c.requireRedirect(one, "c", 1)
	c.update(peersOf("c"))
	require.NotContains(t, c.until, "b")
	c.update(peersOf("B c"))
	c.requireRedirect(one, "b", 2)
}

func TestOnlyHostsOfInactivePeersAreAskedWhetherTheyAnswer(t *testing.T) {
	var asked []netip.Addr
	alive := func(addresses []netip.Addr) []netip.Addr {
		asked = addresses
		return nil
	}
	got := redirectAddresses(peersOf("a B"), alive)
	require.Equal(t, []netip.Addr{addressOf("b")}, asked)
	require.Equal(t, []netip.Addr{addressOf("a")}, got["a"])
	require.Empty(t, got["b"])
	peers := []membership.Peer{{Name: "c", RedirectAddresses: []netip.Addr{addressOf("c")}}}
	redirectAddresses(peers, alive)
	require.Equal(t, []netip.Addr{addressOf("c")}, peers[0].RedirectAddresses, "the peer is not changed")
}

func TestPeersRedirectToAddressesOfInterfacesWhoseLinkIsUp(t *testing.T) {
	var own, unplugged []netip.Addr
	preflighttest.InNetworkNamespace(t, func() {
		interfaces := []string{"eth0", "eth1", "missing", "lo"}
		assert.NoError(t, errors.Join(preflighttest.Plug("eth0", "198.51.100.7/24", "2001:db8::7/64"), preflighttest.Plug("eth1", "192.0.2.7/24"), preflighttest.Plug("other", "203.0.113.7/24")))
		lo, err := netlink.LinkByName("lo")
		assert.NoError(t, errors.Join(err, netlink.LinkSetUp(lo)))
		own = OwnAddresses(interfaces)
		eth1, err := netlink.LinkByName("eth1")
		assert.NoError(t, errors.Join(err, netlink.LinkSetDown(eth1)))
		unplugged = OwnAddresses(interfaces)
	})
	slices.SortFunc(own, netip.Addr.Compare)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}, own, "neither link-local nor loopback addresses")
	require.ElementsMatch(t, []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}, unplugged)
}

func TestAHostWithoutARouteAndOneThatIsSilentDoNotAnswer(t *testing.T) {
	preflighttest.InNetworkNamespace(t, func() {
		assert.False(t, CheckHost(netip.MustParseAddr("192.0.2.9")), "there is no route")
		assert.NoError(t, preflighttest.Plug("eth0", "192.0.2.1/24"))
		assert.False(t, CheckHost(netip.MustParseAddr("192.0.2.9")), "nobody has the address")
	})
}
