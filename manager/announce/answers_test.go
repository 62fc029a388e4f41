package announce

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/ipam"
)

// owning is an announcer without interfaces that has the addresses.
func owning(addresses ...netip.Addr) *Layer2 {
	l := NewLayer2(Layer2Options{Log: slog.New(slog.DiscardHandler)})
	l.Announce(addresses...)
	return l
}

// changed is a copy of a frame with other bytes at an offset.
func changed(frame []byte, at int, to ...byte) []byte {
	frame = bytes.Clone(frame)
	copy(frame[at:], to)
	return frame
}

func TestAnARPRequestForAnOwnAddressIsAnsweredToItsSender(t *testing.T) {
	question := asks(vip4)
	reply := owning(vip4).answerARP(testLink(), question)
	require.True(t, tells(vip4, uplinkMAC, false)(reply))
	arp := reply[ethernetHeader:]
	require.EqualValues(t, 2, binary.BigEndian.Uint16(arp[6:]), "a reply")
	require.Equal(t, []byte(clientMAC), arp[18:24])
	require.Equal(t, client4.AsSlice(), arp[24:28])
	for says, frame := range map[string][]byte{
		"cut short":                   question[:ethernetHeader+arpLength-1],
		"of other hardware":           changed(question, ethernetHeader+4, 8),
		"of another protocol":         changed(question, ethernetHeader+2, 0x86, 0xdd),
		"a reply":                     changed(question, ethernetHeader+6, 0, 2),
		"for an address of another":   asks(vip4.Next()),
		"an announcement of a host":   arpFrame(clientMAC, 1, broadcast, vip4, noMAC, vip4),
		"an announcement of this one": announcementOf(uplinkMAC, vip4),
	} {
		require.Nil(t, owning(vip4).answerARP(testLink(), frame), says)
	}
	require.NotNil(t, owning(vip4).answerARP(testLink(), queryFor(clientMAC, vip4)), "a probe, by which a host finds that the address is taken (RFC 5227)")
}

func TestASolicitationForAnOwnAddressIsAnsweredToItsSenderOrToAll(t *testing.T) {
	question := asks(vip6)
	reply := owning(vip6).answerNDP(testLink(), question)
	require.True(t, tells(vip6, uplinkMAC, false)(reply))
	require.Equal(t, flagSolicited|flagOverride, reply[ethernetHeader+ipv6Header+4])
	require.Equal(t, client6.AsSlice(), reply[ethernetHeader+24:ethernetHeader+40])

	toAll := owning(vip6).answerNDP(testLink(), queryFor(clientMAC, vip6))
	require.True(t, tells(vip6, uplinkMAC, true)(toAll), "a host that detects duplicates has no address yet (RFC 4861 section 7.2.4)")
	require.Equal(t, flagOverride, toAll[ethernetHeader+ipv6Header+4])
	require.Equal(t, allNodes.AsSlice(), toAll[ethernetHeader+24:ethernetHeader+40])
	const icmp = ethernetHeader + ipv6Header
	for says, frame := range map[string][]byte{
		"cut short":                 question[:icmp+23],
		"from beyond a router":      changed(question, ethernetHeader+7, 254),
		"of another protocol":       changed(question, ethernetHeader+ipv6NextHeader, unix.IPPROTO_UDP),
		"of an unknown code":        changed(question, icmp+1, 1),
		"an advertisement":          advertisementOf(clientMAC, allNodesMAC, allNodes, vip6, 0),
		"for an address of another": asks(vip6.Next()),
	} {
		require.Nil(t, owning(vip6).answerNDP(testLink(), frame), says)
	}
}

func TestEachAddressIsQueriedOnceInARound(t *testing.T) {
	for _, c := range []struct{ addresses, calls, largest int }{{0, 1, 0}, {1, 1, 1}, {60, 20, 3}, {maxQueries * queryRound * 2, 50, maxQueries}} {
		l := NewLayer2(Layer2Options{})
		a := netip.MustParseAddr("10.0.0.0")
		for range c.addresses {
			l.owned[a] = true
			a = a.Next()
		}
		left := c.addresses
		for call := range c.calls {
			l.querySome()
			require.LessOrEqual(t, left-len(l.toQuery), c.largest, "call %d of %d addresses", call, c.addresses)
			left = len(l.toQuery)
		}
		require.Zero(t, left, "%d addresses", c.addresses)
	}
}

func TestAnAddressThatIsWithdrawnIsNotQueriedAnyMore(t *testing.T) {
	l := owning(vip4, vip6)
	l.toQuery = []netip.Addr{vip4, vip6}
	l.Withdraw(vip4)
	l.querySome()
	require.Empty(t, l.toQuery, "only the other one was left")
}

func TestAllAddressesAreAnnouncedInBatchesBetweenWhichRequestsAreAnswered(t *testing.T) {
	l := NewLayer2(Layer2Options{})
	a := netip.MustParseAddr("10.0.0.0")
	for range 2*refreshBatch + 1 {
		l.owned[a] = true
		a = a.Next()
	}
	seen, sizes := map[netip.Addr]bool{}, []int{}
	l.inBatches(func(batch []netip.Addr) {
		require.False(t, l.mu.TryLock(), "no address is withdrawn during the batch")
		sizes = append(sizes, len(batch))
		for _, a := range batch {
			seen[a] = true
		}
	})
	require.Equal(t, []int{refreshBatch, refreshBatch, 1}, sizes)
	require.Equal(t, l.owned, seen)
	require.True(t, l.mu.TryLock())
}

func TestAnnouncingAtAnInterfaceThatIsNoneFailsAtTheStart(t *testing.T) {
	for name, why := range map[string]string{"no-such-thing": "no interface has this name", "lo": "not an Ethernet interface", "a-name-that-is-longer-than-any": "state of interface a-name-that-is-longer-than-any: "} {
		l := NewLayer2(Layer2Options{Interfaces: []string{name}, Log: slog.New(slog.DiscardHandler)})
		err := l.Run(t.Context())
		require.ErrorContains(t, err, "announce on interface "+name+" (needs CAP_NET_RAW): ")
		require.ErrorContains(t, err, why)
		require.False(t, l.CanAnnounce())
	}
}

func TestAGatewayThatAnnouncesNothingIsAlwaysAble(t *testing.T) {
	var a Announcer = None{}
	a.Announce(vip4)
	a.Withdraw(vip4)
	require.True(t, a.CanAnnounce())
	require.Empty(t, a.SilentReason(ipam.IPv4))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	select {
	case <-ended:
		require.Fail(t, "it ends with the gateway")
	default:
	}
	cancel()
	require.NoError(t, <-ended)
}

// route is a unicast route to a network by interfaces with these numbers. An empty network is a default route.
func route(to string, by ...int) netlink.Route {
	r := netlink.Route{Type: unix.RTN_UNICAST}
	if to != "" {
		_, r.Dst, _ = net.ParseCIDR(to)
	}
	if len(by) == 1 {
		r.LinkIndex = by[0]
		return r
	}
	for _, index := range by {
		r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: index})
	}
	return r
}

func TestRoutesSayByWhichInterfaceAnswersLeave(t *testing.T) {
	const here, other = 7, 8
	blackhole := route("", here)
	blackhole.Type = unix.RTN_BLACKHOLE
	for says, c := range map[string]struct {
		routes   []netlink.Route
		want     egress
		byOthers bool
	}{
		"there is no route":                       {nil, egress{}, false},
		"a network here":                          {[]netlink.Route{route("192.0.2.0/24", here)}, egress{any: true}, false},
		"a network elsewhere":                     {[]netlink.Route{route("192.0.2.0/24", other)}, egress{}, false},
		"a default route here":                    {[]netlink.Route{route("", here)}, egress{any: true, isDefault: true}, false},
		"a default route that names its network":  {[]netlink.Route{route("0.0.0.0/0", here)}, egress{any: true, isDefault: true}, false},
		"a default route elsewhere":               {[]netlink.Route{route("", other)}, egress{otherDefault: true}, true},
		"default routes here and elsewhere":       {[]netlink.Route{route("", other), route("", here)}, egress{any: true, isDefault: true, otherDefault: true}, false},
		"a network here, a default one elsewhere": {[]netlink.Route{route("192.0.2.0/24", here), route("", other)}, egress{any: true, otherDefault: true}, true},
		"a default route with two next hops":      {[]netlink.Route{route("", other, here)}, egress{any: true, isDefault: true}, false},
		"only link-local addresses here":          {[]netlink.Route{route("fe80::/64", here)}, egress{}, false},
		"a route that drops":                      {[]netlink.Route{blackhole}, egress{}, false},
	} {
		var e egress
		for _, r := range c.routes {
			e.add(r, here)
		}
		require.Equal(t, c.want, e, says)
		require.Equal(t, c.byOthers, e.byOthers(), says)
	}
}

func TestAProblemOfAFamilyIsShownWithWhatMendsIt(t *testing.T) {
	for want, l := range map[string]familyProblem{
		"":                   {},
		"it is off":          {found: "it is off"},
		"it is off; run: on": {found: "it is off", command: "on"},
		"it is off: add one": {found: "it is off", advice: "add one"},
	} {
		require.Equal(t, want, l.String())
	}
	check := familyCheck("eth0", ipam.IPv6, familyProblem{}, errors.New("list routes: interrupted"))
	require.Equal(t, dataplane.CheckUnknown, check.State, "it is not known")
	require.Equal(t, "list routes: interrupted", check.Found)
	check = familyCheck("eth0", ipam.IPv6, familyProblem{found: "it is off", command: "on"}, nil)
	require.Equal(t, dataplane.CheckMissing, check.State)
	require.Equal(t, "run: on", check.Fix())
	require.Equal(t, dataplane.CheckOK, familyCheck("eth0", ipam.IPv6, familyProblem{}, nil).State)
}

func TestALinkWithoutSocketsIsLeftAlone(t *testing.T) {
	l, k := owning(vip6), testLink()
	l.links["test0"] = k
	k.setPending(vip6)
	k.setPending(vip6)
	require.Len(t, k.wake, 1, "keep is woken once")
	l.joinGroups(k)
	l.restoreGroups(k)
	require.NotEmpty(t, k.pending, "its next sockets join all groups")
	require.Empty(t, l.Checks(), "another condition reports that the interface is missing")
	require.False(t, l.CanAnnounce())
	l.refresh()
}

func TestGroupsThatAreNotJoinedAreReportedWithTheReason(t *testing.T) {
	l, k := owning(vip6), testLink()
	l.links["test0"], k.sockets = k, &sockets{}
	l.setUnjoined(k, map[netip.Addr]bool{vip6: true}, errors.New("no room"))
	checks := l.Checks()
	require.Len(t, checks, 1)
	require.Equal(t, "multicast groups at interface test0", checks[0].Subject)
	require.Equal(t, "1 groups of IPv6 addresses are not joined: no room", checks[0].Found)
	require.False(t, checks[0].Required(), "a switch may pass all multicast")
	l.setUnjoined(k, nil, nil)
	require.NotContains(t, l.Checks()[0].Found, "not joined", "there is no interface test0, and no IPv6 at it")
	l.Withdraw(vip6)
	require.Empty(t, l.Checks(), "no group is needed")
}

func TestAnEndlessTaskEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	every(ctx, time.Microsecond, func() {
		if calls++; calls == 3 {
			cancel()
		}
	})
	require.GreaterOrEqual(t, calls, 3)
}
