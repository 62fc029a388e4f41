// Package drain decides when a gateway gives its addresses to others while its connections go on: by the operator's request, when its Node is cordoned,
// and before it ends.
package drain

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// Notice is for how long a gateway publishes that it leaves before it withdraws its addresses, where no other gateway is elected for them: peers learn
// meanwhile that they are to redirect to it.
const Notice = time.Second

// State says whether the gateway drains, and since when. It belongs to the gateway's loop, except for the methods that say otherwise.
type State struct {
	log *slog.Logger
	// Shutdown is the end of the gateway's process.
	Shutdown *Shutdown
	// since is zero while the gateway does not drain.
	since     time.Time
	requested bool
	node      cordon
	// decommissioned: the gateway leaves for good. Other goroutines ask.
	decommissioned atomic.Bool
}

// New returns the state of a gateway that does not drain.
func New(log *slog.Logger) *State { return &State{log: log, Shutdown: newShutdown(log)} }

// Request notes whether the operator requests that the gateway drains.
func (s *State) Request(is bool) { s.requested = is }

// Cordon notes whether the gateway's Node is cordoned.
func (s *State) Cordon(is bool) { s.node.is = is }

// Decommission notes that the gateway leaves for good, and tells whether that is new. It is safe for concurrent use, and so is Decommissioned.
func (s *State) Decommission() (isNew bool) { return !s.decommissioned.Swap(true) }

// Decommissioned tells whether the gateway leaves for good.
func (s *State) Decommissioned() bool { return s.decommissioned.Load() }

// Update notes whether the gateway drains now. replaced tells whether others may answer for each of its addresses.
func (s *State) Update(now time.Time, replaced func() bool) {
	by := ""
	switch {
	case s.Shutdown.begun:
		by = "the gateway is told to end"
	case s.requested:
		by = "spec.draining of its Gateway"
	case s.node.drains(replaced, now):
		by = "its Node is cordoned"
	}
	switch {
	case by == "" && s.Draining():
		s.log.Info("drains no more")
		s.since = time.Time{}
	case by != "" && !s.Draining():
		s.log.Info("drains", "by", by)
		s.since = now
	}
}

// Draining tells whether the gateway drains.
func (s *State) Draining() bool { return !s.since.IsZero() }

// For is for how long the gateway has drained, zero while it does not.
func (s *State) For(now time.Time) time.Duration {
	if !s.Draining() {
		return 0
	}
	return now.Sub(s.since)
}

// Over tells whether the gateway has drained for so long that peers have heard of it.
func (s *State) Over(now time.Time) bool { return s.Draining() && s.For(now) >= Notice }

// Pause is how long nothing changes by the passing of time alone, if that is shorter than most.
func (s *State) Pause(most time.Duration, now time.Time) time.Duration {
	if !s.Draining() && !s.node.from.IsZero() {
		most = min(most, max(time.Millisecond, s.node.from.Sub(now)))
	}
	if s.Shutdown.begun {
		most = min(most, LookEvery)
	}
	return most
}
