package heartbeat

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/manager/clock"
)

// Refusal is a gateway with signed heartbeats that are not accepted, so that it counts as gone.
type Refusal struct {
	Gateway, Reason string
	at              time.Duration
}

// The reasons for which heartbeats are refused, with what to do.
const (
	reasonClock = "its clock and this host's clock differ by more than a minute: correct both"
	reasonEpoch = "their epoch is lower than an epoch that was received before: either the gateway's clock was set back after its state directory was lost, " +
		"which ends by itself within two minutes, or another host sends old frames again"
)

// refusalLifetime is how long a refusal counts after the last refused frame.
const refusalLifetime = 3 * time.Second

// refusal is a frame that is refused. isNew: no earlier frame was refused for the same reason.
type refusal struct {
	Refusal
	isNew bool
}

// Error implements error.
func (r refusal) Error() string {
	return fmt.Sprintf("the heartbeats of gateway %s are refused: %s", r.Gateway, r.Reason)
}

// refuse notes that a gateway is refused. It notes nothing if the gateway is heard as well: then the refused frame is an old one. The caller holds
// mu.
func (s *Speaker) refuse(name, reason string, now time.Duration) error {
	r := refusal{Refusal: Refusal{Gateway: name, Reason: reason, at: now}}
	if last, known := s.peers[name]; known && now-last.receivedAt <= Silence {
		return r
	}
	before := s.refusals[name]
	r.isNew = before.Reason != reason || now-before.at > refusalLifetime
	s.refusals[name] = r.Refusal
	return r
}

// logRefusal logs why a frame is not accepted. If it is a gateway's frame, the level is Warn, and the log has one line for each reason.
func (s *Speaker) logRefusal(err error) {
	var r refusal
	switch {
	case err == nil:
	case errors.As(err, &r) && r.isNew:
		s.options.Log.Warn("heartbeats are refused", "gateway", r.Gateway, "reason", r.Reason)
	default:
		s.options.Log.Debug("ignore an invalid heartbeat", "error", err)
	}
}

// expireRefusals drops refusals that do not count any more. The caller holds mu.
func (s *Speaker) expireRefusals(now time.Duration) {
	maps.DeleteFunc(s.refusals, func(_ string, r Refusal) bool { return now-r.at > refusalLifetime })
}

// Refusals returns the gateways whose heartbeats are refused now, by name.
func (s *Speaker) Refusals() (refusals []Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := clock.Now()
	s.expireRefusals(now)
	return slices.SortedFunc(maps.Values(s.refusals), func(a, b Refusal) int { return cmp.Compare(a.Gateway, b.Gateway) })
}
