// Package drain decides when a gateway gives its addresses to others while its connections go on: if the operator requests it, while its Node is
// cordoned, and before its process ends.
package drain

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// WithdrawDelay is the time between the publication that a gateway drains and the withdrawal of its addresses, if gateways do not elect. In this time peers
// begin to redirect packets to it.
const WithdrawDelay = time.Second

// State says whether the gateway drains, and since when. It belongs to the gateway's loop, except for the methods that say otherwise.
type State struct {
	log *slog.Logger
	// Shutdown is the end of the gateway's process.
	Shutdown *Shutdown
	// since is zero while the gateway does not drain.
	since     time.Time
	requested bool
	cordon    cordon
	// decommissioned: the gateway goes for good. Other goroutines read it.
	decommissioned atomic.Bool
}

// New returns the state of a gateway that does not drain.
func New(log *slog.Logger) *State { return &State{log: log, Shutdown: newShutdown(log)} }

// Request sets whether the operator requests a drain.
func (s *State) Request(requested bool) { s.requested = requested }

// Cordon sets whether the gateway's Node is cordoned.
func (s *State) Cordon(cordoned bool) { s.cordon.cordoned = cordoned }

// Decommission notes that the gateway goes for good, and returns whether this is new. It is safe for concurrent use.
func (s *State) Decommission() (isNew bool) { return !s.decommissioned.Swap(true) }

// Decommissioned reports whether the gateway goes for good. It is safe for concurrent use.
func (s *State) Decommissioned() bool { return s.decommissioned.Load() }

// Update decides whether the gateway drains now. replaced reports whether peers may answer for each of its addresses.
func (s *State) Update(now time.Time, replaced func() bool) {
	reason := ""
	switch {
	case s.Shutdown.begun:
		reason = "the process is told to end"
	case s.requested:
		reason = "spec.draining of its Gateway"
	case s.cordon.shouldDrain(replaced, now):
		reason = "its Node is cordoned"
	}
	switch {
	case reason == "" && s.Draining():
		s.log.Info("the gateway does not drain any more")
		s.since = time.Time{}
	case reason != "" && !s.Draining():
		s.log.Info("the gateway drains", "reason", reason)
		s.since = now
	}
}

// Draining reports whether the gateway drains.
func (s *State) Draining() bool { return !s.since.IsZero() }

// DrainingFor returns for how long the gateway has drained, zero if it does not.
func (s *State) DrainingFor(now time.Time) time.Duration {
	if !s.Draining() {
		return 0
	}
	return now.Sub(s.since)
}

// WithdrawDelayOver reports whether the gateway has drained for so long that its peers know it.
func (s *State) WithdrawDelayOver(now time.Time) bool {
	return s.Draining() && s.DrainingFor(now) >= WithdrawDelay
}

// NextUpdateIn returns for how long Update need not be called if nothing happens, at most the given time.
func (s *State) NextUpdateIn(limit time.Duration, now time.Time) time.Duration {
	if !s.Draining() && !s.cordon.drainAt.IsZero() {
		limit = min(limit, max(time.Millisecond, s.cordon.drainAt.Sub(now)))
	}
	if s.Shutdown.begun {
		limit = min(limit, CountInterval)
	}
	return limit
}
