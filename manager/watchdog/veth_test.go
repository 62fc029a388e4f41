package watchdog

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/manager/uplink/segment"
)

func TestTheInterfacesOfAnotherProcessAreNotRemoved(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(*segment.Segment) {
		former, err := openVethPair([]netip.Addr{client4})
		require.NoError(t, err)
		present, err := openVethPair([]netip.Addr{client4})
		require.NoError(t, err)
		require.NoError(t, former.close())
		_, err = netlink.LinkByName(hostInterface)
		require.NoError(t, err, "the present process has its interfaces")
		require.NoError(t, present.close())
		_, err = netlink.LinkByName(hostInterface)
		require.ErrorAs(t, err, &netlink.LinkNotFoundError{})
	})
}

func TestInterfacesOfAKilledProcessAreRemovedEvenIfRenamed(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		for _, name := range []string{hostInterface, clientInterface} {
			_, err := openVethPair([]netip.Addr{client4})
			require.NoError(t, err)
			s.IP("link set " + name + " name renamed")
		}
		present, err := openVethPair([]netip.Addr{client4})
		require.NoError(t, err)
		require.NoError(t, present.close())
	})
}

func TestAFailureToOpenTheInterfacesIsLoggedOnce(t *testing.T) {
	t.Parallel()
	segment.Run(t, segment.Options{}, func(*segment.Segment) {
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644))
		var log strings.Builder
		ctx, cancel := context.WithCancel(t.Context())
		told := 0
		w := New(Options{Sources: []netip.Addr{client6}, Interval: time.Second, Log: slog.New(slog.NewTextHandler(&log, nil)), OnReport: func(_ context.Context, r Report) {
			require.Contains(t, r.Problem, client6.String())
			if told++; told == 3 {
				cancel()
			}
		}})
		w.times.reopenPause = tick
		_ = w.Run(ctx)
		require.Equal(t, 1, strings.Count(log.String(), "cannot be tried"), log.String())
	})
}
