package announce

import (
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/uplink"
)

// Address plan: this link is 02:00:00:00:00:01; VIPs 203.0.113.1 and 2001:db8::1.
func testLink() *link {
	k := newLink("test0")
	k.state = uplink.State{Index: 1, MAC: uplinkMAC, Running: true}
	return k
}

func TestAnARPReplyHasTheMACOfTheAddress(t *testing.T) {
	asker := clientMAC
	frame := arpFrame(uplinkMAC, 2, asker, netip.MustParseAddr("203.0.113.1"), asker, netip.MustParseAddr("203.0.113.9"))
	require.Equal(t, "020000000009"+"020000000001"+"0806"+ // Ethernet
		"0001"+"0800"+"06"+"04"+"0002"+ // Ethernet, IPv4, reply
		"020000000001"+"cb007101"+ // the address is at this link
		"020000000009"+"cb007109", hex.EncodeToString(frame))
}

func TestAnAdvertisementHasAValidChecksum(t *testing.T) {
	address := netip.MustParseAddr("2001:db8::1")
	frame := advertisementOf(uplinkMAC, allNodesMAC, allNodes, address, flagOverride)
	require.Len(t, frame, 14+40+32)
	require.Equal(t, "333300000001"+"020000000001"+"86dd", hex.EncodeToString(frame[:14]))
	ip, icmp := frame[14:54], frame[54:]
	require.EqualValues(t, 58, ip[6], "next header ICMPv6")
	require.EqualValues(t, 255, ip[7], "a router that forwards it would lower the hop limit (RFC 4861 section 7.1.2)")
	require.EqualValues(t, 32, ip[5], "payload length")
	require.EqualValues(t, advertisement, icmp[0])
	require.EqualValues(t, flagOverride, icmp[4], "override, not solicited, no router")
	require.Equal(t, address, netip.AddrFrom16([16]byte(icmp[8:24])))
	require.Equal(t, []byte{2, 1, 2, 0, 0, 0, 0, 1}, icmp[24:32], "target link-layer address")
	// The checksum of a message with its own checksum is zero.
	require.Zero(t, checksum(address, allNodes, icmp))
}

func TestTheFilterPassesOnlySolicitationsAndAdvertisements(t *testing.T) {
	filter, err := bpf.NewVM(onlyNeighbourDiscovery())
	require.NoError(t, err)
	given := func(nextHeader, first byte) bool {
		frame := make([]byte, ethernetHeader+ipv6Header+24)
		frame[ethernetHeader], frame[ethernetHeader+6], frame[ethernetHeader+ipv6Header] = 0x60, nextHeader, first
		n, err := filter.Run(frame)
		require.NoError(t, err)
		require.Contains(t, []int{0, len(frame)}, min(n, len(frame)), "all of it or nothing")
		return n > 0
	}
	require.True(t, given(58, 135))
	require.True(t, given(58, 136))
	require.False(t, given(58, 134), "a router's advertisement")
	require.False(t, given(58, 128), "an echo request")
	require.False(t, given(6, 135), "TCP from port 34560 on")
	require.False(t, given(17, 135))
	n, err := filter.Run(make([]byte, ethernetHeader))
	require.NoError(t, err)
	require.Zero(t, n, "a frame that ends early")
}

func ours(l *Layer2, a netip.Addr) bool {
	_, is := l.owns(testLink(), a)
	return is
}

func TestOnlyRequestsForOwnedAddressesAreAnswered(t *testing.T) {
	l := NewLayer2(Layer2Options{})
	l.Announce(netip.MustParseAddr("203.0.113.1"))
	require.True(t, ours(l, netip.MustParseAddr("203.0.113.1")))
	require.False(t, ours(l, netip.MustParseAddr("203.0.113.2")))
	l.Withdraw(netip.MustParseAddr("203.0.113.1"))
	require.False(t, ours(l, netip.MustParseAddr("203.0.113.1")))
}

func TestWithoutTheLeaseNothingIsAnswered(t *testing.T) {
	holds := true
	l := NewLayer2(Layer2Options{HoldsLease: func() bool { return holds }})
	l.Announce(netip.MustParseAddr("203.0.113.1"))
	require.True(t, ours(l, netip.MustParseAddr("203.0.113.1")))
	holds = false
	require.False(t, ours(l, netip.MustParseAddr("203.0.113.1")))
}

// The gateway owns no address, so it answers nothing.
func FuzzFramesFromTheWire(f *testing.F) {
	asker := clientMAC
	f.Add(arpFrame(uplinkMAC, 1, broadcast, netip.MustParseAddr("203.0.113.9"), asker, netip.MustParseAddr("203.0.113.1")))
	f.Add(advertisementOf(uplinkMAC, allNodesMAC, allNodes, netip.MustParseAddr("2001:db8::1"), 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		l := NewLayer2(Layer2Options{})
		require.Nil(t, l.answerARP(testLink(), frame))
		require.Nil(t, l.answerNDP(testLink(), frame))
	})
}

func TestAnAddressConflictIsReportedAtTheSecondClaim(t *testing.T) {
	one, two := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	holds, changes := true, 0
	l := NewLayer2(Layer2Options{HoldsLease: func() bool { return holds }, Changed: func() { changes++ }, Log: slog.New(slog.DiscardHandler)})
	l.links["test0"] = testLink()
	l.Announce(one, two)
	now := time.Now()
	mac := clientMAC
	require.False(t, l.updateClaim(one, mac, now), "a frame may have been late")
	require.False(t, l.updateClaim(one, mac, now.Add(confirmAfter/2)))
	require.Empty(t, l.Conflicts())
	require.True(t, l.updateClaim(one, mac, now.Add(confirmAfter)))
	require.False(t, l.updateClaim(one, mac, now.Add(2*confirmAfter)), "the conflict is known already")
	require.Equal(t, []Conflict{{one, "02:00:00:00:00:09"}}, l.Conflicts())

	for name, heed := range map[string]func() bool{
		"one's own frame":            func() bool { return l.updateClaim(two, uplinkMAC, now) },
		"an address of another host": func() bool { return l.updateClaim(netip.MustParseAddr("203.0.113.2"), mac, now) },
		"without the lease":          func() bool { holds = false; defer func() { holds = true }(); return l.updateClaim(two, mac, now) },
	} {
		require.False(t, heed(), name)
		require.Len(t, l.claims, 1, name)
	}
	last := now.Add(2 * confirmAfter)
	require.Empty(t, l.expireClaims(last.Add(claimLifetime-time.Millisecond)))
	require.Equal(t, []netip.Addr{one}, l.expireClaims(last.Add(claimLifetime)))
	require.Empty(t, l.Conflicts())

	l.updateClaim(one, mac, now)
	l.Withdraw(one)
	require.Empty(t, l.claims, "whoever has it now")

	// Claims: the sender of any ARP packet and of any solicitation, and an advertisement.
	l.Announce(one)
	require.Nil(t, l.answerARP(testLink(), arpFrame(mac, 1, broadcast, one, make(net.HardwareAddr, 6), netip.MustParseAddr("203.0.113.9"))))
	require.Nil(t, l.answerNDP(testLink(), advertisementOf(mac, allNodesMAC, allNodes, two, flagOverride)))
	asks := solicitationOf(mac, netip.MustParseAddr("2001:db8::9"))
	three := netip.MustParseAddr("2001:db8::3")
	l.Announce(three)
	copy(asks[ethernetHeader+8:], three.AsSlice())
	require.Nil(t, l.answerNDP(testLink(), asks))
	require.Equal(t, mac.String(), l.claims[three].mac)
	require.Equal(t, mac.String(), l.claims[one].mac)
	require.Equal(t, mac.String(), l.claims[two].mac)
	l.claims[one].first = now.Add(-confirmAfter)
	require.Nil(t, l.answerARP(testLink(), arpFrame(mac, 2, uplinkMAC, one, uplinkMAC, netip.IPv4Unspecified())))
	require.Len(t, l.Conflicts(), 1)
	require.Equal(t, 1, changes)
}

func TestTheNumberOfTrackedClaimsIsBounded(t *testing.T) {
	l := NewLayer2(Layer2Options{})
	a := netip.MustParseAddr("203.0.113.0")
	for range 2 * maxClaims {
		l.Announce(a)
		l.updateClaim(a, net.HardwareAddr{2, 0, 0, 0, 0, 9}, time.Now())
		a = a.Next()
	}
	require.Len(t, l.claims, maxClaims)
}

func TestAQueryForTheOwnAddressAnnouncesNothing(t *testing.T) {
	frame := arpFrame(uplinkMAC, 1, broadcast, netip.IPv4Unspecified(), make(net.HardwareAddr, 6), netip.MustParseAddr("203.0.113.1"))
	require.Equal(t, "ffffffffffff"+"020000000001"+"0806"+"0001"+"0800"+"06"+"04"+"0001"+
		"020000000001"+"00000000"+"000000000000"+"cb007101", hex.EncodeToString(frame))
	address := netip.MustParseAddr("2001:db8::12:3456")
	frame = solicitationOf(uplinkMAC, address)
	require.Equal(t, "3333ff123456"+"020000000001"+"86dd", hex.EncodeToString(frame[:14]))
	ip, icmp := frame[14:54], frame[54:]
	require.Equal(t, netip.IPv6Unspecified(), netip.AddrFrom16([16]byte(ip[8:24])))
	group := netip.AddrFrom16([16]byte(ip[24:40]))
	require.Equal(t, netip.MustParseAddr("ff02::1:ff12:3456"), group)
	require.EqualValues(t, 255, ip[7])
	require.EqualValues(t, solicitation, icmp[0])
	require.Equal(t, address, netip.AddrFrom16([16]byte(icmp[8:24])))
	require.Len(t, icmp, 24, "no option: a solicitation from the unspecified address has no MAC address (RFC 4861 section 4.3)")
	require.Zero(t, checksum(netip.IPv6Unspecified(), group, icmp))
}

func TestIPv6IsSilentOnAnInterfaceWithoutIPv6(t *testing.T) {
	changes, off := 0, map[string]string{"test0": "IPv6 is turned off on interface test0"}
	l := NewLayer2(Layer2Options{Interfaces: []string{"test0", "test1"}, Log: slog.New(slog.DiscardHandler), Changed: func() { changes++ },
		unsupportedFamily: func(name string, _ uplink.State, f ipam.Family) (string, error) {
			if off[name] == "?" {
				return "", errors.New("interrupted")
			}
			return map[ipam.Family]string{ipam.IPv6: off[name]}[f], nil
		}})
	require.Equal(t, "interface test0 does not exist; interface test1 does not exist", l.SilentReason(ipam.IPv4))
	l.links["test0"] = testLink()
	require.Contains(t, l.SilentReason(ipam.IPv4), "interface test0 is down, or has no carrier")
	l.links["test0"].sockets = &sockets{}
	l.checkFamilies()
	require.Equal(t, 1, changes)
	require.Empty(t, l.SilentReason(ipam.IPv4))
	require.Equal(t, "IPv6 is turned off on interface test0; interface test1 does not exist", l.SilentReason(ipam.IPv6))
	l.links["test1"] = testLink()
	l.links["test1"].name, l.links["test1"].sockets = "test1", &sockets{}
	l.checkFamilies()
	require.Equal(t, 1, changes)
	require.Empty(t, l.SilentReason(ipam.IPv6), "the other interface carries it")
	off["test0"], off["test1"] = "?", "off"
	l.checkFamilies()
	require.Equal(t, 2, changes, "the gateway elects again")
	require.Equal(t, "IPv6 is turned off on interface test0; off", l.SilentReason(ipam.IPv6), "after an error the former reason stays")
	off["test0"] = ""
	l.checkFamilies()
	require.Equal(t, 3, changes)
	require.Empty(t, l.SilentReason(ipam.IPv6))
}
