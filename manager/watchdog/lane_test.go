package watchdog

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/manager/uplink/segment"
)

func TestTheInterfacesOfAnotherProcessAreLeftAlone(t *testing.T) {
	segment.Run(t, segment.Options{}, func(*segment.Segment) {
		former, err := openLane([]netip.Addr{client4})
		require.NoError(t, err)
		present, err := openLane([]netip.Addr{client4})
		require.NoError(t, err)
		require.NoError(t, former.close())
		_, err = netlink.LinkByName(Near)
		require.NoError(t, err, "those of the process that has come since")
		require.NoError(t, present.close())
		_, err = netlink.LinkByName(Near)
		require.ErrorAs(t, err, &netlink.LinkNotFoundError{})
	})
}

func TestWhatAKilledProcessLeftIsRemovedUnderAnotherNameToo(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		for _, name := range []string{Near, far} {
			_, err := openLane([]netip.Addr{client4})
			require.NoError(t, err)
			s.IP("link set " + name + " name renamed")
		}
		present, err := openLane([]netip.Addr{client4})
		require.NoError(t, err)
		require.NoError(t, present.close())
	})
}
