package uplink

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"

	"kubelb.k8c.io/manager/uplink/segment"
)

const (
	mac   = "02:00:00:00:00:01"
	other = "02:00:00:00:00:02"
	soon  = 5 * time.Second
)

// seen follows the interface uplink until the test ends.
func seen(t *testing.T) <-chan State {
	t.Helper()
	states := make(chan State, 64)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Follow(ctx, "uplink", func(s State) { states <- s }, func(err error) { t.Error(err) })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return states
}

// becomes waits for a state of the interface.
func becomes(t *testing.T, states <-chan State, is func(State) bool) {
	t.Helper()
	for {
		select {
		case s := <-states:
			if is(s) {
				return
			}
		case <-time.After(soon):
			require.FailNow(t, "it has not become so")
		}
	}
}

func TestAllChangesOfAnInterfaceAreReported(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		states := seen(t)
		becomes(t, states, func(is State) bool { return is.Equal(State{}) })
		s.Plug("uplink", mac)
		becomes(t, states, func(is State) bool { return is.Running && is.MAC.String() == mac && is.MTU == 1500 })
		s.IP("link set uplink address " + other)
		becomes(t, states, func(is State) bool { return is.Running && is.MAC.String() == other })
		s.IP("link set uplink mtu 1400")
		becomes(t, states, func(is State) bool { return is.MTU == 1400 })
		s.IP("link set " + segment.Port("uplink") + " down")
		becomes(t, states, func(is State) bool { return !is.Running && is.Index > 0 })
		s.IP("link set " + segment.Port("uplink") + " up")
		becomes(t, states, func(is State) bool { return is.Running })
		s.IP("link set uplink down")
		s.IP("link set uplink name moved")
		becomes(t, states, func(is State) bool { return is.Index == 0 })
		s.IP("link set moved name uplink")
		becomes(t, states, func(is State) bool { return is.Index > 0 })
	})
}

// Even with the same number and MAC address it is a new interface: sockets of the former one receive nothing from it.
func TestTheDeletionOfAReplacedInterfaceIsReported(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.IP("link add uplink index 77 address " + mac + " type veth peer name far")
		states := seen(t)
		becomes(t, states, func(is State) bool { return is.Index == 77 })
		s.Unplug("uplink")
		s.IP("link add uplink index 77 address " + mac + " type veth peer name far")
		becomes(t, states, func(is State) bool { return is.Index == 0 })
		becomes(t, states, func(is State) bool { return is.Index == 77 })
	})
}

// group is a group of none of the interface's addresses.
func group(n int) netip.Addr {
	return SolicitedNode(netip.AddrFrom4([4]byte{0, 0x80 + byte(n>>16), byte(n >> 8), byte(n)}))
}

func TestTheNumberOfGroupsIsBoundedWhateverTheLimitOfASocket(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac)
		device, err := net.InterfaceByName("uplink")
		require.NoError(t, err)
		ours := func() (joined int) {
			all, err := memberships(device.Index) // with the host's own groups
			require.NoError(t, err)
			for n := range MaxGroups + 1 {
				if all[group(n)] {
					joined++
				}
			}
			return joined
		}
		g := NewGroups(device.Index)
		for n := range MaxGroups {
			require.NoError(t, g.Join(group(n)), n)
		}
		require.Greater(t, len(g.sockets), 1, "one has no room for so many")
		require.ErrorIs(t, g.Join(group(MaxGroups)), ErrTooManyGroups)
		require.NoError(t, g.Join(group(1)), "the group is joined")
		require.Equal(t, MaxGroups, ours())
		g.Leave(group(1))
		require.NoError(t, g.Join(group(MaxGroups)), "there is room again")
		g.Close()
		require.Zero(t, ours())
	})
}

func TestGroupsThatTheKernelDropsAreJoinedAgain(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac)
		device, err := net.InterfaceByName("uplink")
		require.NoError(t, err)
		g := NewGroups(device.Index)
		defer g.Close()
		require.NoError(t, g.Join(group(1)))
		s.IP("link set uplink mtu 1000")
		lost, err := g.Restore()
		require.Error(t, err, "there is no IPv6 at the interface")
		require.Equal(t, []netip.Addr{group(1)}, lost)
		s.IP("link set uplink mtu 1500")
		require.NoError(t, g.Join(group(1)))
		s.IP("link set uplink mtu 1000")
		s.IP("link set uplink mtu 1500")
		there, err := memberships(device.Index)
		require.NoError(t, err)
		require.NotContains(t, there, group(1))
		lost, err = g.Restore()
		require.NoError(t, err)
		require.Empty(t, lost)
		there, err = memberships(device.Index)
		require.NoError(t, err)
		require.Contains(t, there, group(1))
	})
}

func TestTheKernelAcceptsTheFilter(t *testing.T) {
	_, err := bpf.Assemble(ForThisHost([]bpf.Instruction{bpf.RetConstant{Val: 1}}))
	require.NoError(t, err)
}

func TestAMissingInterfaceIsNoError(t *testing.T) {
	s, err := ReadState("no-such-thing")
	require.NoError(t, err)
	require.Equal(t, State{}, s)
	lo, err := ReadState("lo")
	require.NoError(t, err)
	require.Equal(t, 1, lo.Index)
	require.Empty(t, lo.MAC, "it is not an Ethernet interface")
	_, err = ReadState("a-name-that-is-longer-than-any")
	require.Error(t, err)
}
