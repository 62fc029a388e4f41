package drain

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func discarded() *slog.Logger { return slog.New(slog.DiscardHandler) }

func always() bool { return true }
func never() bool  { return false }

func TestAGatewayDrainsWhileTheOperatorRequestsItEvenIfNobodyTakesOver(t *testing.T) {
	s, now := New(discarded()), time.Now()
	s.Update(now, always)
	require.False(t, s.Draining())
	s.Request(true)
	s.Update(now, never)
	require.True(t, s.Draining())
	require.False(t, s.WithdrawDelayOver(now.Add(WithdrawDelay-1)), "its peers do not know it yet")
	require.True(t, s.WithdrawDelayOver(now.Add(WithdrawDelay)))
	s.Update(now.Add(time.Minute), never)
	require.Equal(t, time.Minute, s.DrainingFor(now.Add(time.Minute)), "it has drained since the request")
	s.Request(false)
	s.Update(now.Add(time.Minute), never)
	require.False(t, s.Draining())
	require.Zero(t, s.DrainingFor(now.Add(time.Hour)))
}

func TestAGatewayWithACordonedNodeDrainsAfterItsRandomWait(t *testing.T) {
	s, now := New(discarded()), time.Now()
	s.Cordon(true)
	s.Update(now, always)
	require.False(t, s.Draining(), "other gateways with cordoned Nodes may drain first")
	pause := s.NextUpdateIn(time.Hour, now)
	require.GreaterOrEqual(t, pause, minCordonWait)
	require.Less(t, pause, maxCordonWait)
	s.Update(now.Add(pause), always)
	require.True(t, s.Draining())
	require.Equal(t, time.Hour, s.NextUpdateIn(time.Hour, now))
	s.Update(now.Add(pause), never)
	require.False(t, s.Draining(), "no other gateway is left")
}

func TestAShutdownEndsWhenNoConnectionIsLeftForAWhileOrNobodyTakesOver(t *testing.T) {
	begun := func() *Shutdown {
		s := New(discarded()).Shutdown
		s.Begin()
		return s
	}
	over := func(s *Shutdown) bool {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 20 { // if both channels are ready, select takes a random one
			if s.Wait(ended) {
				return true
			}
		}
		return false
	}
	s := begun()
	for range requiredIdleCounts {
		s.NoteConnections(true, 0)
		s.FinishIfDone(always)
	}
	require.False(t, over(s), "it still answers for an address")
	s.NoteConnections(false, 7)
	for range requiredIdleCounts - 1 {
		s.NoteConnections(false, 0)
	}
	s.FinishIfDone(always)
	require.False(t, over(s), "a late client may connect")
	s.NoteConnections(false, 0)
	s.FinishIfDone(always)
	require.True(t, over(s))

	s = begun()
	s.NoteConnections(true, 7)
	s.FinishIfDone(never)
	require.True(t, over(s), "no other gateway takes over")

	s = New(discarded()).Shutdown
	s.FinishIfDone(never)
	require.False(t, over(s), "it was not told to end")
}

func TestAGatewayIsDecommissionedOnce(t *testing.T) {
	s := New(discarded())
	require.False(t, s.Decommissioned())
	require.True(t, s.Decommission())
	require.False(t, s.Decommission(), "the DaemonSet changes more than once while it is deleted")
	require.True(t, s.Decommissioned())
}
