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

// Refusal is a gateway whose heartbeats are signed and are not heeded all the same, so that it counts as gone.
type Refusal struct {
	Gateway, Reason string
	at              time.Duration
}

// Why heartbeats are refused, with what to do.
const (
	reasonClock = "its clock and this host's are more than a minute apart: set both right"
	reasonEpoch = "they are of an earlier run of it than what was heard before: its clock was put back after its state directory was lost, which ends by " +
		"itself within two minutes, or somebody sends old frames again"
)

// refusedFor is how long a refusal counts of which nothing more is heard.
const refusedFor = 3 * time.Second

// refusal is a frame that is refused; fresh is that no earlier one told the same.
type refusal struct {
	Refusal
	fresh bool
}

// Error implements error.
func (r refusal) Error() string {
	return fmt.Sprintf("the heartbeats of gateway %s are refused: %s", r.Gateway, r.Reason)
}

// refuse notes that a gateway is refused. One that is heard nevertheless is not: what is refused is an old frame of it. mu is held.
func (h *Heart) refuse(name, reason string, now time.Duration) error {
	r := refusal{Refusal: Refusal{Gateway: name, Reason: reason, at: now}}
	if last, known := h.heard[name]; known && now-last.at <= Silence {
		return r
	}
	before := h.refused[name]
	r.fresh = before.Reason != reason || now-before.at > refusedFor
	h.refused[name] = r.Refusal
	return r
}

// note logs why a frame is not heeded: as a warning, and once, where it is a gateway's.
func (h *Heart) note(err error) {
	var refused refusal
	switch {
	case err == nil:
	case errors.As(err, &refused) && refused.fresh:
		h.options.Log.Warn("heartbeats are refused", "gateway", refused.Gateway, "reason", refused.Reason)
	default:
		h.options.Log.Debug("a heartbeat that is none", "error", err)
	}
}

// forgetRefusals forgets refusals that do not count any more. mu is held.
func (h *Heart) forgetRefusals(now time.Duration) {
	maps.DeleteFunc(h.refused, func(_ string, r Refusal) bool { return now-r.at > refusedFor })
}

// Refused are the gateways whose heartbeats are refused now, by name.
func (h *Heart) Refused() (refused []Refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := clock.Now()
	h.forgetRefusals(now)
	return slices.SortedFunc(maps.Values(h.refused), func(a, b Refusal) int { return cmp.Compare(a.Gateway, b.Gateway) })
}
