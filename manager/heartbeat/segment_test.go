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

// startSpeaker runs a speaker at an interface until the test ends.
func startSpeaker(t *testing.T, name, at string, reaches bool) *Speaker {
	t.Helper()
	s := speaker(name, "secret", reaches)
	s.options.Interfaces = []string{at}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, []byte("secret")) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return s
}

// hasState returns a condition for require.Eventually, which polls as a gateway does.
func hasState(s *Speaker, v PeerState) func() bool { return func() bool { return s.PeerState() == v } }

// isHeartbeat matches frames from one MAC address to another.
func isHeartbeat(to, from net.HardwareAddr) func([]byte) bool {
	return func(frame []byte) bool { return bytes.Equal(frame[:6], to) && bytes.Equal(frame[6:12], from) }
}

func TestHeartbeatsComeFromTheMACThatTheInterfaceHas(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		startSpeaker(t, "a", "uplink", true)
		require.True(t, s.Tap("peer").Sees(soon, isHeartbeat(groupMAC, mac)))
		s.IP("link set uplink address " + nextMAC.String())
		tap := s.Tap("peer")
		require.True(t, tap.Sees(soon, isHeartbeat(groupMAC, nextMAC)))
		require.True(t, tap.Sees(soon, isHeartbeat(group6MAC, nextMAC)))
	})
}

func TestHeartbeatsGoOnWhenAnInterfaceIsReplaced(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		a, b := startSpeaker(t, "a", "uplink", true), startSpeaker(t, "b", "peer", true)
		require.Eventually(t, hasState(b, PeerReachesAPI), soon, Interval/2)
		s.Plug("next", nextMAC.String())
		s.IP("link set next down")
		s.Unplug("uplink")
		s.IP("link set next name uplink")
		s.IP("link set uplink up")
		require.True(t, s.Tap("peer").Sees(soon, isHeartbeat(groupMAC, nextMAC)))
		require.Eventually(t, func() bool { return a.PeerState() == PeerReachesAPI && b.PeerState() == PeerReachesAPI }, soon, Interval/2)
	})
}

func TestHeartbeatsOfAnotherVLANOrForAnotherHostAreIgnored(t *testing.T) {
	segment.Run(t, segment.Options{}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		s.IP("link set uplink promisc on")
		a, b, tap := startSpeaker(t, "a", "uplink", true), speaker("b", "secret", true), s.Tap("peer")
		require.Eventually(t, hasState(a, NoPeer), soon, Interval/2)
		tagged := func(frame []byte) []byte {
			return append(binary.BigEndian.AppendUint16(append(slices.Clone(frame[:12]), 0x81, 0), 7), frame[12:]...)
		}
		toAnother := func(frame []byte) []byte { return append(slices.Clone(nextMAC), frame[6:]...) }
		from := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		for name, changed := range map[string]func([]byte) []byte{"tagged": tagged, "to another": toAnother} {
			tap.Send(changed(b.frame(from, time.Now())))
			tap.Send(changed(toPacket(b.frame(from, time.Now()))))
			require.Never(t, hasState(a, PeerReachesAPI), 2*Interval, Interval/4, name)
		}
		for name, as := range map[string]func([]byte) []byte{"frame": slices.Clone[[]byte], "packet": toPacket} {
			require.Eventually(t, hasState(a, NoPeer), soon, Interval/4)
			tap.Send(as(b.frame(from, time.Now())))
			require.Eventually(t, hasState(a, PeerReachesAPI), soon, Interval/4, name)
		}
	})
}

func TestASwitchThatDropsMulticastToNoMembersPassesHeartbeats(t *testing.T) {
	segment.Run(t, segment.Options{Snoops: true, DropsUnknown: true}, func(s *segment.Segment) {
		s.Plug("uplink", mac.String())
		s.Plug("peer", "02:00:00:00:00:09")
		a, b := startSpeaker(t, "a", "uplink", true), startSpeaker(t, "b", "peer", false)
		require.Eventually(t, func() bool { return a.PeerState() == PeersWithoutAPI && b.PeerState() == PeerReachesAPI }, 3*soon, Interval/2)
		require.Contains(t, s.Groups("uplink"), group6.String())
	})
}
