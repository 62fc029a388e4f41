package announce

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/uplink"
)

var strangerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0x77}

func TestAClaimOfAMomentIsNoConflict(t *testing.T) {
	l, began := owning(vip4), time.Now()
	require.False(t, l.updateClaim(vip4, strangerMAC, began))
	require.False(t, l.updateClaim(vip4, strangerMAC, began.Add(confirmAfter-1)), "a late frame of the gateway that had it before")
	require.Empty(t, l.Conflicts())
	require.True(t, l.updateClaim(vip4, strangerMAC, began.Add(confirmAfter)))
	require.False(t, l.updateClaim(vip4, strangerMAC, began.Add(2*confirmAfter)), "it is reported once")
	require.Equal(t, []Conflict{{vip4, "02:00:00:00:00:77"}}, l.Conflicts())
	next := net.HardwareAddr{2, 0, 0, 0, 0, 0x78}
	l.updateClaim(vip4, next, began.Add(3*confirmAfter))
	require.Equal(t, "02:00:00:00:00:78", l.Conflicts()[0].MAC, "the last host that was heard")
}

func TestConflictsEndWhenTheOtherHostIsSilent(t *testing.T) {
	l, began := owning(vip4, vip6), time.Now()
	l.updateClaim(vip4, strangerMAC, began)
	l.updateClaim(vip4, strangerMAC, began.Add(confirmAfter))
	l.updateClaim(vip6, strangerMAC, began.Add(confirmAfter))
	require.Empty(t, l.expireClaims(began.Add(confirmAfter+claimLifetime-1)))
	require.Equal(t, []netip.Addr{vip4}, l.expireClaims(began.Add(confirmAfter+claimLifetime)), "the other one was never confirmed")
	require.Empty(t, l.claims)
	require.Empty(t, l.Conflicts())
}

func TestNobodyElseClaimsAnAddress(t *testing.T) {
	holds := true
	l := NewLayer2(Layer2Options{HoldsLease: func() bool { return holds }, Log: slog.New(slog.DiscardHandler)})
	l.links["test0"] = testLink()
	l.Announce(vip4)
	confirmed := func(a netip.Addr, mac net.HardwareAddr) bool {
		began := time.Now()
		return l.updateClaim(a, mac, began) || l.updateClaim(a, mac, began.Add(confirmAfter))
	}
	require.False(t, confirmed(vip4, uplinkMAC), "it is this gateway's own frame")
	require.False(t, confirmed(vip6, strangerMAC), "the address is not of this gateway")
	holds = false
	require.False(t, confirmed(vip4, strangerMAC), "without the lease another gateway has it by now")
	require.Empty(t, l.claims)
	holds = true
	require.True(t, confirmed(vip4, strangerMAC))
	l.Withdraw(vip4)
	require.Empty(t, l.Conflicts(), "it is not this gateway's any more")
}

func TestConflictsAreSortedAndReported(t *testing.T) {
	var logged bytes.Buffer
	changes := 0
	l := NewLayer2(Layer2Options{Changed: func() { changes++ }, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	l.Announce(vip6, vip4)
	for _, a := range []netip.Addr{vip6, vip4} {
		l.claims[a] = &claim{first: time.Now().Add(-confirmAfter)}
		l.observe(a, strangerMAC)
		l.observe(a, strangerMAC)
	}
	require.Equal(t, 2, changes)
	require.Equal(t, 2, strings.Count(logged.String(), "another host answers for an address of this gateway"))
	require.Contains(t, logged.String(), "mac=02:00:00:00:00:77")
	conflicts := l.Conflicts()
	require.Equal(t, []netip.Addr{vip4, vip6}, []netip.Addr{conflicts[0].Address, conflicts[1].Address})
	for _, c := range l.claims {
		c.last = time.Now().Add(-claimLifetime)
	}
	l.checkClaims()
	require.Equal(t, 3, changes)
	require.Contains(t, logged.String(), "no other host answers for these addresses any more")
	l.checkClaims()
	require.Equal(t, 3, changes)
}

func TestAFamilyIsSilentIfEachInterfaceHasAReason(t *testing.T) {
	l := NewLayer2(Layer2Options{Interfaces: []string{"test0", "test1", "test2"}, Log: slog.New(slog.DiscardHandler)})
	down, works := newLink("test1"), newLink("test2")
	works.sockets, works.state = &sockets{}, uplink.State{Index: 2, Running: true}
	works.unsupported = map[ipam.Family]string{ipam.IPv6: "IPv6 is turned off on interface test2"}
	l.links = map[string]*link{"test1": down, "test2": works}
	require.Equal(t, "interface test0 does not exist; interface test1 is down, or has no carrier; IPv6 is turned off on interface test2", l.SilentReason(ipam.IPv6))
	require.Empty(t, l.SilentReason(ipam.IPv4), "one interface is enough")
	require.True(t, l.CanAnnounce())
	works.state.Running = false
	require.False(t, l.CanAnnounce())
	require.Contains(t, l.SilentReason(ipam.IPv4), "interface test2 is down, or has no carrier")
}

func TestAGroupIsCountedUntilItsLastAddressIsWithdrawn(t *testing.T) {
	l := NewLayer2(Layer2Options{Log: slog.New(slog.DiscardHandler)})
	k := testLink()
	l.links["test0"] = k
	one, same := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1")
	group := uplink.SolicitedNode(one)
	require.Equal(t, group, uplink.SolicitedNode(same))
	l.Announce(one, vip4)
	l.Announce(one, same)
	require.Equal(t, map[netip.Addr]int{group: 2}, l.groups, "an address counts once, and IPv4 has no groups")
	require.Contains(t, k.pending, group)
	clear(k.pending)
	l.Withdraw(one, one)
	require.Equal(t, 1, l.groups[group])
	require.Empty(t, k.pending, "another address needs it")
	l.Withdraw(same)
	require.Empty(t, l.groups)
	require.Contains(t, k.pending, group)
}
