package bfd

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/uplink/segment"
)

// isFrom matches control packets from an address.
func isFrom(a netip.Addr) func([]byte) bool {
	const ethernet = 14
	source, port := ethernet+12, ethernet+20+2
	if a.Is6() {
		source, port = ethernet+8, ethernet+40+2
	}
	return func(frame []byte) bool {
		return len(frame) >= port+2 && bytes.HasPrefix(frame[source:], a.AsSlice()) && binary.BigEndian.Uint16(frame[port:]) == Port
	}
}

func TestASessionGoesOnAfterItsSourceAddressIsRemoved(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", "02:00:00:00:00:01")
		s.Plug("peer", "02:00:00:00:00:09")
		server := New(Options{Changed: func() {}, Log: slog.New(slog.DiscardHandler)})
		defer server.Close()
		for _, c := range []struct{ router, first, next, length string }{{"192.0.2.9", "192.0.2.1", "192.0.2.2", "/24"}, {"2001:db8::9", "2001:db8::1", "2001:db8::2", "/64"}} {
			router := netip.MustParseAddr(c.router)
			s.IP("address add " + c.first + c.length + " dev uplink" + map[bool]string{true: " nodad"}[router.Is6()])
			known := "neighbour replace " + c.router + " lladdr 02:00:00:00:00:09 dev uplink"
			s.IP(known)
			require.NoError(t, server.SetPeers(map[netip.Addr]Timers{router: {Interval: 100 * time.Millisecond, Multiplier: 3}}))
			tap := s.Tap("peer")
			require.True(t, tap.Sees(5*time.Second, isFrom(netip.MustParseAddr(c.first))), c.first)
			s.IP("address delete " + c.first + c.length + " dev uplink")
			s.IP("address add " + c.next + c.length + " dev uplink" + map[bool]string{true: " nodad"}[router.Is6()])
			s.IP(known) // the entry disappears with the last address
			require.True(t, tap.Sees(10*time.Second, isFrom(netip.MustParseAddr(c.next))), c.next)
		}
	})
}
