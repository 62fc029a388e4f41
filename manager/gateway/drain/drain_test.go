package drain

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func always() bool { return true }
func never() bool  { return false }

func TestAGatewayDrainsWhileTheOperatorRequestsItWhoeverReplacesIt(t *testing.T) {
	s, now := New(slog.New(slog.DiscardHandler)), time.Now()
	s.Update(now, always)
	require.False(t, s.Draining())
	s.Request(true)
	s.Update(now, never)
	require.True(t, s.Draining())
	require.False(t, s.Over(now.Add(Notice-1)), "peers get a moment to hear of it")
	require.True(t, s.Over(now.Add(Notice)))
	s.Update(now.Add(time.Minute), never)
	require.Equal(t, time.Minute, s.For(now.Add(time.Minute)), "it has drained since it was requested")
	s.Request(false)
	s.Update(now.Add(time.Minute), never)
	require.False(t, s.Draining())
	require.Zero(t, s.For(now.Add(time.Hour)))
}

func TestAGatewayWhoseNodeIsCordonedLooksAgainWhenItsTimeHasCome(t *testing.T) {
	s, now := New(slog.New(slog.DiscardHandler)), time.Now()
	s.Cordon(true)
	s.Update(now, always)
	require.False(t, s.Draining(), "others that are cordoned may go first")
	pause := s.Pause(time.Hour, now)
	require.GreaterOrEqual(t, pause, cordonWaitsAtLeast)
	require.Less(t, pause, cordonWaitsAtMost)
	s.Update(now.Add(pause), always)
	require.True(t, s.Draining())
	require.Equal(t, time.Hour, s.Pause(time.Hour, now))
	s.Update(now.Add(pause), never)
	require.False(t, s.Draining(), "it is the last one")
}

func TestAShutdownIsOverWhenNoConnectionWasLeftForAWhileOrNobodyTakesOver(t *testing.T) {
	begun := func() *Shutdown {
		s := New(slog.New(slog.DiscardHandler)).Shutdown
		s.Begin()
		return s
	}
	over := func(s *Shutdown) bool {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 20 { // of two reasons to return select takes one by chance
			if s.Wait(ended) {
				return true
			}
		}
		return false
	}
	s := begun()
	for range idleLooks {
		s.NoteConnections(true, 0)
		s.Finish(always)
	}
	require.False(t, over(s), "it answers for an address")
	s.NoteConnections(false, 7)
	for range idleLooks - 1 {
		s.NoteConnections(false, 0)
	}
	s.Finish(always)
	require.False(t, over(s), "a client may come late")
	s.NoteConnections(false, 0)
	s.Finish(always)
	require.True(t, over(s))

	s = begun()
	s.NoteConnections(true, 7)
	s.Finish(never)
	require.True(t, over(s), "nobody takes over")

	s = New(slog.New(slog.DiscardHandler)).Shutdown
	s.Finish(never)
	require.False(t, over(s), "it was not told to end")
}

func TestAGatewayIsDecommissionedOnce(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler))
	require.False(t, s.Decommissioned())
	require.True(t, s.Decommission())
	require.False(t, s.Decommission(), "the DaemonSet is seen more than once while it is being deleted")
	require.True(t, s.Decommissioned())
}
