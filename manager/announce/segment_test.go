package announce

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/uplink"
	"kubelb.k8c.io/manager/uplink/segment"
)

// Address plan: the gateway is at uplink, whose MAC is 02:00:00:00:00:01. A client is at peer, 02:00:00:00:00:09, 203.0.113.9 and 2001:db8::9.
var (
	vip4, vip6       = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::12:3456")
	client4, client6 = netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")
	uplinkMAC        = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	otherMAC         = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	clientMAC        = net.HardwareAddr{2, 0, 0, 0, 0, 9}
)

const soon = 2 * time.Second

// answering runs an announcer at the interface uplink until the test ends.
func answering(t *testing.T, addresses ...netip.Addr) *Layer2 {
	t.Helper()
	l := NewLayer2(Layer2Options{Interfaces: []string{"uplink"}, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	require.Eventually(t, l.CanAnnounce, soon, time.Millisecond)
	l.Announce(addresses...)
	return l
}

// testWriter writes log lines to the test's log.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

// asks returns the client's request for an address.
func asks(a netip.Addr) []byte {
	if a.Is4() {
		return arpFrame(clientMAC, 1, broadcast, client4, noMAC, a)
	}
	return asksFrom(client6, a)
}

// asksFrom returns a solicitation of a host with an address.
func asksFrom(source, a netip.Addr) []byte {
	frame := solicitationOf(clientMAC, a)
	icmp := frame[ethernetHeader+ipv6Header:]
	icmp[2], icmp[3] = 0, 0
	return icmp6Frame(clientMAC, frame[:6], source, uplink.SolicitedNode(a), icmp)
}

// tells matches a frame to the client, or to all, that says that the address is at the MAC address.
func tells(a netip.Addr, at net.HardwareAddr, all bool) func([]byte) bool {
	return func(frame []byte) bool {
		if len(frame) < ethernetHeader+arpLength || bytes.Equal(frame[:6], clientMAC) == all || !bytes.Equal(frame[6:12], at) {
			return false
		}
		if a.Is4() {
			p := frame[ethernetHeader:]
			return binary.BigEndian.Uint16(frame[12:]) == etherTypeARP && bytes.Equal(p[8:14], at) && bytes.Equal(p[14:18], a.AsSlice())
		}
		const option = ethernetHeader + ipv6Header + 24
		return len(frame) >= option+8 && binary.BigEndian.Uint16(frame[12:]) == etherTypeIPv6 && frame[ethernetHeader+ipv6Header] == advertisement &&
			bytes.Equal(frame[option-16:option], a.AsSlice()) && bytes.Equal(frame[option+2:option+8], at)
	}
}

// answers reports whether the client's request is answered with the MAC address. It repeats the request: a port of the switch may not forward yet.
func answers(tap *segment.Tap, a netip.Addr, at net.HardwareAddr) bool {
	for range 50 {
		if tap.Send(asks(a)); tap.Sees(soon/20, tells(a, at, false)) {
			return true
		}
	}
	return false
}

func TestANewMACOfALinkIsAnnouncedAndUsedInAnswers(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", uplinkMAC.String())
		s.Plug("peer", clientMAC.String())
		answering(t, vip4, vip6)
		for _, a := range []netip.Addr{vip4, vip6} {
			require.True(t, answers(s.Tap("peer"), a, uplinkMAC), a)
		}
		time.Sleep(announcements * announcementsPause)
		for _, a := range []netip.Addr{vip4, vip6} {
			tap, next := s.Tap("peer"), otherMAC
			if a.Is6() {
				next = uplinkMAC
			}
			s.IP("link set uplink address " + next.String())
			require.True(t, tap.Sees(soon, tells(a, next, true)), "%s is not announced", a)
			require.True(t, answers(tap, a, next), "%s is not answered for", a)
		}
	})
}

func TestFramesForOtherHostsAreNotAnswered(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", uplinkMAC.String())
		s.Plug("peer", clientMAC.String())
		answering(t, vip4, vip6)
		for _, a := range []netip.Addr{vip4, vip6} {
			require.True(t, answers(s.Tap("peer"), a, uplinkMAC))
			question := asks(a)
			tagged := func(id uint16) []byte {
				return append(binary.BigEndian.AppendUint16(append(bytes.Clone(question[:12]), 0x81, 0), id), question[12:]...)
			}
			toAnother := append(bytes.Clone(otherMAC), question[6:]...)
			toThis := append(bytes.Clone(uplinkMAC), question[6:]...)
			for name, c := range map[string]struct {
				frame    []byte
				answered bool
			}{
				"to all":                   {question, true},
				"to this host":             {toThis, true},
				"to another host":          {toAnother, false},
				"of VLAN 7":                {tagged(7), false},
				"with a priority, no VLAN": {tagged(0x6000), true},
			} {
				tap := s.Tap("peer")
				s.IP("link set uplink promisc on")
				tap.Send(c.frame)
				within := map[bool]time.Duration{true: 2 * soon, false: soon / 4}[c.answered]
				require.Equal(t, c.answered, tap.Sees(within, tells(a, uplinkMAC, false)), "%s %s", a, name)
			}
		}
	})
}

func TestAReplacedInterfaceAnswersAgain(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", uplinkMAC.String())
		s.Plug("peer", clientMAC.String())
		answering(t, vip4, vip6)
		require.True(t, answers(s.Tap("peer"), vip4, uplinkMAC))
		tap := s.Tap("peer")
		// At once, so that polling does not see that it was missing.
		s.Plug("next", otherMAC.String())
		s.IP("link set next down")
		s.Unplug("uplink")
		s.IP("link set next name uplink")
		s.IP("link set uplink up")
		for _, a := range []netip.Addr{vip4, vip6} {
			require.True(t, answers(tap, a, otherMAC), a)
		}
	})
}

func TestASnoopingSwitchPassesSolicitationsToTheGateway(t *testing.T) {
	segment.Run(t, segment.Options{Snoops: true}, func(s *segment.Segment) {
		const group = "ff02::1:ff12:3456"
		s.Plug("uplink", uplinkMAC.String())
		s.Plug("peer", clientMAC.String())
		l, tap := answering(t), s.Tap("peer")
		passes := func() bool { return slices.Contains(s.Groups("uplink"), group) }
		require.Never(t, passes, soon/4, 100*time.Millisecond, "the address is not owned")
		l.Announce(vip6)
		require.Eventually(t, passes, 4*soon, 10*time.Millisecond)
		require.True(t, answers(tap, vip6, uplinkMAC))
		require.Empty(t, l.Checks())

		s.IP("link set uplink mtu 1000") // too small for IPv6
		// Until the announcer has noticed it, the check only says that there is no IPv6.
		require.Eventually(t, func() bool {
			checks := l.Checks()
			return len(checks) == 1 && strings.Contains(checks[0].Found, "1 groups of IPv6 addresses are not joined")
		}, 4*soon, 10*time.Millisecond)
		s.IP("link set uplink mtu 1500")
		require.Eventually(t, func() bool { return len(l.Checks()) == 0 }, soon, 10*time.Millisecond)
		require.Eventually(t, passes, 4*soon, 10*time.Millisecond)

		const disabled = "/proc/sys/net/ipv6/conf/uplink/disable_ipv6"
		require.NoError(t, os.WriteFile(disabled, []byte("1"), 0))
		require.Len(t, l.Checks(), 1)
		require.Contains(t, l.Checks()[0].Found, "IPv6 is disabled at the interface")
		require.NoError(t, os.WriteFile(disabled, []byte("0"), 0))
		require.Empty(t, l.Checks())

		s.Plug("next", otherMAC.String())
		s.Unplug("uplink")
		s.IP("link set next down")
		s.IP("link set next name uplink")
		s.IP("link set uplink up")
		require.True(t, answers(tap, vip6, otherMAC), "the switch has another interface")

		l.Withdraw(vip6)
		require.Eventually(t, func() bool { return !slices.Contains(s.Groups("next"), group) }, 4*soon, 10*time.Millisecond, "no address of the group is owned any more")
	})
}

func TestAGroupIsLeftWithItsLastAddress(t *testing.T) {
	l := NewLayer2(Layer2Options{})
	one, other := netip.MustParseAddr("2001:db8:1::12:3456"), netip.MustParseAddr("2001:db8:2::12:3456")
	group := uplink.SolicitedNode(one)
	l.links["test0"] = testLink()
	l.links["test0"].state.Running = false
	for _, c := range []struct {
		do    func(...netip.Addr)
		a     netip.Addr
		asked int
		noted bool
	}{{l.Announce, one, 1, true}, {l.Announce, one, 1, false}, {l.Announce, other, 2, false}, {l.Announce, vip4, 2, false}, {l.Withdraw, one, 1, false}, {l.Withdraw, one, 1, false}, {l.Withdraw, other, 0, true}} {
		clear(l.links["test0"].pending)
		c.do(c.a)
		require.Equal(t, c.asked, l.groups[group])
		require.Equal(t, c.noted, l.links["test0"].pending[group])
	}
	require.Empty(t, l.groups)
}

// The families that an interface carries may change while it is up.
func TestAFamilyThatNoInterfaceCarriesIsSilent(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", uplinkMAC.String())
		l := answering(t)
		becomes := func(f ipam.Family, why string) {
			t.Helper()
			require.Eventually(t, func() bool {
				is := l.SilentReason(f)
				return why == "" && is == "" || why != "" && strings.Contains(is, why)
			}, 2*time.Minute, 10*time.Millisecond, "%q", why) // on a loaded machine checks are slow
		}
		sysctl := func(name, value string) {
			t.Helper()
			require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/uplink/"+name, []byte(value), 0))
		}
		const unnumbered = "interface uplink has no IPv4 address, and no IPv4 route leads out of it"
		becomes(ipam.IPv4, unnumbered)
		s.IP("route add 203.0.113.0/24 dev uplink table 7")
		becomes(ipam.IPv4, "")
		s.IP("route delete 203.0.113.0/24 dev uplink table 7")
		becomes(ipam.IPv4, unnumbered)
		s.Plug("other", otherMAC.String())
		s.IP("route add 203.0.113.0/24 nexthop dev uplink nexthop dev other")
		becomes(ipam.IPv4, "")
		s.IP("route delete 203.0.113.0/24")
		becomes(ipam.IPv4, unnumbered)
		s.IP("address add 203.0.113.2/24 dev uplink")
		becomes(ipam.IPv4, "")

		const unrouted = "no IPv6 route to clients leads out of interface uplink"
		becomes(ipam.IPv6, unrouted)
		s.IP("-6 address add 2001:db8::2/64 dev uplink nodad")
		becomes(ipam.IPv6, "")
		sysctl("disable_ipv6", "1")
		becomes(ipam.IPv6, "IPv6 is turned off on interface uplink; run: sysctl -w net.ipv6.conf.uplink.disable_ipv6=0")
		require.Empty(t, l.SilentReason(ipam.IPv4))
		sysctl("disable_ipv6", "0")
		becomes(ipam.IPv6, unrouted)
		s.IP("-6 route add default dev uplink")
		becomes(ipam.IPv6, "")
		s.IP("-6 address flush dev uplink")
		s.IP("-6 address add 2001:db8::2/64 dev uplink nodad")
		becomes(ipam.IPv6, "interface uplink has no link-local IPv6 address")
		s.IP("-6 address add fe80::2/64 dev uplink nodad")
		becomes(ipam.IPv6, "")
		s.IP("link set uplink mtu 1000")
		becomes(ipam.IPv6, "the MTU of interface uplink is 1000 bytes, and IPv6 needs 1280")
		s.IP("link set uplink mtu 1500")
		becomes(ipam.IPv6, unrouted)
	})
}

// Preflight reports the same as the gateway.
func TestPreflightReportsAFamilyThatAnInterfaceDoesNotCarry(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", uplinkMAC.String())
		families := func() (v4, v6 dataplane.Check) {
			t.Helper()
			checks := FamilyChecks("uplink")
			require.Len(t, checks, 2)
			return checks[0], checks[1]
		}
		s.IP("-6 address add 2001:db8::2/64 dev uplink nodad")
		v4, v6 := families()
		require.Equal(t, "IPv4 at interface uplink: interface uplink has no IPv4 address, and no IPv4 route leads out of it; "+
			"does not work: IPv4 addresses, unless another interface carries IPv4; add an address of the clients' network (ip address add …/24 dev uplink)", v4.String())
		require.False(t, v4.Required(), "addresses of the other family work")
		require.Equal(t, dataplane.CheckOK, v6.State, v6.String())
		s.IP("address add 203.0.113.2/24 dev uplink")
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/uplink/disable_ipv6", []byte("1"), 0))
		v4, v6 = families()
		require.Equal(t, dataplane.CheckOK, v4.State, v4.String())
		require.Equal(t, "IPv6 is turned off on interface uplink", v6.Found)
		require.Contains(t, v6.Fix(), "run: sysctl -w net.ipv6.conf.uplink.disable_ipv6=0 && ")
		s.IP("link set uplink down")
		require.Empty(t, FamilyChecks("uplink"), "another check reports that the interface is down")
		require.Empty(t, FamilyChecks("nowhere"))
	})
}

// Packets arrive at an interface without an address, and answers leave by another one.
func TestAnInterfaceCarriesAFamilyIfAnswersLeaveByAnotherInterface(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		for _, name := range []string{"all", "default"} {
			require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0))
		}
		s.Plug("uplink", uplinkMAC.String())
		s.Plug("other", otherMAC.String())
		s.IP("-6 address flush dev uplink")
		index := interfaceIndex(t, "uplink")
		lacks := func(f ipam.Family) string {
			t.Helper()
			reason, err := unsupportedFamily("uplink", uplink.State{Index: index, MTU: 1500}, f)
			require.NoError(t, err)
			return reason
		}
		require.Contains(t, lacks(ipam.IPv4), "has no IPv4 address")
		require.Contains(t, lacks(ipam.IPv6), "has no link-local IPv6 address")
		s.IP("route add default dev other")
		s.IP("-6 route add default dev other")
		require.Empty(t, lacks(ipam.IPv4))
		require.Empty(t, lacks(ipam.IPv6))
		s.IP("-6 route add default dev uplink metric 1")
		require.Contains(t, lacks(ipam.IPv6), "has no link-local IPv6 address", "answers leave by it")
		for _, strict := range []string{"1", "2"} {
			require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/conf/uplink/rp_filter", []byte(strict), 0))
			require.Contains(t, lacks(ipam.IPv4), "has no IPv4 address", "the kernel drops what comes in")
		}
	})
}

func interfaceIndex(t *testing.T, name string) int {
	t.Helper()
	is, err := net.InterfaceByName(name)
	require.NoError(t, err)
	return is.Index
}
