package uplink

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/manager/uplink/segment"
)

func TestAStateEqualsOnlyAStateWithTheSameOfEverything(t *testing.T) {
	same := func() State {
		return State{Index: 7, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500, Running: true}
	}
	require.True(t, same().Equal(same()))
	for what, change := range map[string]func(*State){
		"index": func(s *State) { s.Index++ }, "MAC": func(s *State) { s.MAC[5]++ }, "no MAC": func(s *State) { s.MAC = nil }, "MTU": func(s *State) { s.MTU-- }, "running": func(s *State) { s.Running = false },
	} {
		other := same()
		change(&other)
		require.False(t, same().Equal(other), what)
	}
}

func TestAStateIsReportedOnceAlsoTheFirstOneOfAMissingInterface(t *testing.T) {
	var reported []State
	f := follower{changed: func(s State) { reported = append(reported, s) }}
	up := State{Index: 7, Running: true}
	for _, s := range []State{{}, {}, up, up, {}} {
		f.report(s)
	}
	require.Equal(t, []State{{}, up, {}}, reported)
}

// update is an event of the kernel.
func update(kind uint16, family uint8, index int32, name string) netlink.LinkUpdate {
	u := netlink.LinkUpdate{Header: unix.NlMsghdr{Type: kind}, Link: &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name, Index: int(index)}}}
	u.IfInfomsg = nl.IfInfomsg{IfInfomsg: unix.IfInfomsg{Family: family, Index: index}}
	return u
}

// The follower follows uplink, which has the number 7.
func TestOnlyEventsOfTheInterfaceMakeItsStateBeReadAgain(t *testing.T) {
	for says, c := range map[string]struct {
		event netlink.LinkUpdate
		read  bool
		gone  bool
	}{
		"it changes":                          {update(unix.RTM_NEWLINK, unix.AF_UNSPEC, 7, "uplink"), true, false},
		"it gets another name":                {update(unix.RTM_NEWLINK, unix.AF_UNSPEC, 7, "moved"), true, false},
		"another one gets its name":           {update(unix.RTM_NEWLINK, unix.AF_UNSPEC, 8, "uplink"), true, false},
		"it is deleted":                       {update(unix.RTM_DELLINK, unix.AF_UNSPEC, 7, "uplink"), true, true},
		"it leaves a bridge":                  {update(unix.RTM_DELLINK, unix.AF_BRIDGE, 7, "uplink"), true, false},
		"a former one of its name is deleted": {update(unix.RTM_DELLINK, unix.AF_UNSPEC, 6, "uplink"), true, false},
		"another one changes":                 {update(unix.RTM_NEWLINK, unix.AF_UNSPEC, 8, "other"), false, false},
		"another one is deleted":              {update(unix.RTM_DELLINK, unix.AF_UNSPEC, 8, "other"), false, false},
	} {
		t.Run(says, func(t *testing.T) {
			var reported []State
			f := follower{name: "uplink", changed: func(s State) { reported = append(reported, s) }}
			f.report(State{Index: 7})
			updates := make(chan netlink.LinkUpdate, 1)
			updates <- c.event
			close(updates) // is noticed only if the event was passed over
			err := f.await(t.Context(), updates, nil)
			if !c.read {
				require.ErrorIs(t, err, errEventsLost)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.gone, len(reported) == 2)
			require.Equal(t, c.gone, f.last.Equal(State{}), "a new interface may already have its name and number")
		})
	}
}

func TestTheStateIsReadAgainNowAndThenAndAfterLostEvents(t *testing.T) {
	f := follower{name: "uplink"}
	tick := make(chan time.Time, 1)
	tick <- time.Now()
	require.NoError(t, f.await(t.Context(), nil, tick))
	lost := make(chan netlink.LinkUpdate)
	close(lost)
	require.ErrorIs(t, f.await(t.Context(), lost, nil), errEventsLost)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, f.await(ended, nil, nil), context.Canceled)
}

func TestFollowingAnImpossibleNameSaysWhyUntilItEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var why error
	Follow(ctx, "a-name-that-is-longer-than-any", func(State) { t.Error("it has no state") }, func(err error) {
		why = err
		cancel()
	})
	require.ErrorContains(t, why, "follow interface a-name-that-is-longer-than-any: ")
	require.ErrorIs(t, why, unix.EINVAL)
}

func TestGroupsOfAnInterfaceThatIsGoneCannotBeJoined(t *testing.T) {
	g := NewGroups(1 << 30)
	defer g.Close()
	require.ErrorContains(t, g.Join(group(1)), "join a group: ")
	require.Zero(t, g.Len())
	require.False(t, g.Has(group(1)))
	lost, err := g.Restore()
	require.NoError(t, err, "nothing was joined")
	require.Empty(t, lost)
}

func TestAGroupIsJoinedOnceAndLeft(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac)
		device, err := net.InterfaceByName("uplink")
		require.NoError(t, err)
		joined := func(n int) bool {
			there, err := memberships(device.Index)
			require.NoError(t, err)
			return there[group(n)]
		}
		g := NewGroups(device.Index)
		require.NoError(t, g.Join(group(1)))
		require.NoError(t, g.Join(group(1)))
		require.NoError(t, g.Join(group(2)))
		require.Equal(t, 2, g.Len())
		require.Equal(t, 2, g.sockets[0].members)
		require.True(t, joined(1) && joined(2))
		g.sockets[0].full = true
		g.Leave(group(1))
		g.Leave(group(1))
		require.False(t, g.Has(group(1)) || joined(1))
		require.Equal(t, 1, g.sockets[0].members)
		require.False(t, g.sockets[0].full, "there is room again")
		g.Close()
		require.Zero(t, g.Len())
		require.False(t, joined(2))
	})
}

func TestWhenAllSocketsAreFullTheErrorNamesTheSysctl(t *testing.T) {
	g := NewGroups(1)
	for range maxSockets {
		g.sockets = append(g.sockets, &groupSocket{fd: -1, full: true, members: 1})
	}
	require.ErrorContains(t, g.Join(group(1)), "set sysctl net.core.optmem_max to 131072")
	require.Len(t, g.sockets, maxSockets)
}

// The example is that of RFC 4291, section 2.7.1.
func TestASolicitedNodeGroupHasTheLowBitsOfTheAddress(t *testing.T) {
	for address, want := range map[string]string{"4037::1:800:200e:8c6c": "ff02::1:ff0e:8c6c", "2001:db8::1": "ff02::1:ff00:1", "2001:db8::ffff:ffff": "ff02::1:ffff:ffff"} {
		require.Equal(t, netip.MustParseAddr(want), SolicitedNode(netip.MustParseAddr(address)))
	}
}

func TestTheInternetChecksum(t *testing.T) {
	for says, c := range map[string]struct {
		bytes []byte
		want  uint16
	}{
		"the example of RFC 1071, section 3": {[]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, ^uint16(0xddf2)},
		"nothing":                            {nil, 0xffff},
		"an odd number of bytes":             {[]byte{0x12, 0x34, 0x56}, ^uint16(0x1234 + 0x5600)},
		"a carry that carries":               {[]byte{0xff, 0xff, 0xff, 0xff, 0x00, 0x01}, ^uint16(0x0001)},
		"with its own checksum it is zero":   {[]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0x22, 0x0d}, 0},
	} {
		require.Equal(t, c.want, Checksum(c.bytes), says)
	}
}
