package heartbeat

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/uplink/segment"
)

const soon = 3 * time.Second

var nextMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}

// beats has a heart beat at an interface until the test ends.
func beats(t *testing.T, name, at string, reaches bool) *Heart {
	t.Helper()
	h := heart(name, "secret", reaches)
	h.options.Interfaces = []string{at}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx, []byte("secret")) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return h
}

// says looks at verdicts, as a gateway does all the time.
func says(h *Heart, v Verdict) func() bool { return func() bool { return h.Verdict() == v } }

// goes matches heartbeats to a MAC address, from another one.
func goes(to, from net.HardwareAddr) func([]byte) bool {
	return func(frame []byte) bool { return bytes.Equal(frame[:6], to) && bytes.Equal(frame[6:12], from) }
}

func TestHeartbeatsComeFromTheMACThatTheInterfaceHas(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		beats(t, "a", "uplink", true)
		require.True(t, s.Tap("peer").Sees(soon, goes(group, mac)))
		s.IP("link set uplink address " + nextMAC.String())
		tap := s.Tap("peer")
		require.True(t, tap.Sees(soon, goes(group, nextMAC)))
		require.True(t, tap.Sees(soon, goes(group6MAC, nextMAC)))
	})
}

func TestHeartbeatsGoOnWhenAnInterfaceIsReplaced(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		a, b := beats(t, "a", "uplink", true), beats(t, "b", "peer", true)
		require.Eventually(t, says(b, OneReaches), soon, Interval/2)
		s.Plug("next", nextMAC.String())
		s.IP("link set next down")
		s.Unplug("uplink")
		s.IP("link set next name uplink")
		s.IP("link set uplink up")
		require.True(t, s.Tap("peer").Sees(soon, goes(group, nextMAC)))
		require.Eventually(t, func() bool { return a.Verdict() == OneReaches && b.Verdict() == OneReaches }, soon, Interval/2)
	})
}

func TestHeartbeatsOfAnotherVLANOrForAnotherHostAreNotHeard(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		s.IP("link set uplink promisc on")
		a, b, tap := beats(t, "a", "uplink", true), heart("b", "secret", true), s.Tap("peer")
		require.Eventually(t, says(a, Alone), soon, Interval/2)
		tagged := func(frame []byte) []byte {
			return append(binary.BigEndian.AppendUint16(append(slices.Clone(frame[:12]), 0x81, 0), 7), frame[12:]...)
		}
		toAnother := func(frame []byte) []byte { return append(slices.Clone(nextMAC), frame[6:]...) }
		from := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		for name, changed := range map[string]func([]byte) []byte{"tagged": tagged, "to another": toAnother} {
			tap.Send(changed(b.frame(from, time.Now())))
			tap.Send(changed(asPacket(b.frame(from, time.Now()))))
			require.Never(t, says(a, OneReaches), 2*Interval, Interval/4, name)
		}
		for name, as := range map[string]func([]byte) []byte{"frame": slices.Clone[[]byte], "packet": asPacket} {
			require.Eventually(t, says(a, Alone), soon, Interval/4)
			tap.Send(as(b.frame(from, time.Now())))
			require.Eventually(t, says(a, OneReaches), soon, Interval/4, name)
		}
	})
}

func TestASwitchThatDropsMulticastToNoMembersPassesHeartbeats(t *testing.T) {
	segment.Run(t, segment.Options{Snoops: true, DropsUnknown: true}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		a, b := beats(t, "a", "uplink", true), beats(t, "b", "peer", false)
		require.Eventually(t, func() bool { return a.Verdict() == NoneReaches && b.Verdict() == OneReaches }, 3*soon, Interval/2)
		require.Contains(t, s.Groups("uplink"), group6.String())
	})
}
