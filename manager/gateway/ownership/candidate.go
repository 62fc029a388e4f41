package ownership

import "time"

// A gateway that comes back takes its addresses back only after it has worked for minReturnDelay. Each failure within flapWindow after the last one
// doubles the delay.
const (
	minReturnDelay = 5 * time.Second
	maxReturnDelay = 5 * time.Minute
	// candidateDelay is the time for peers that go on without a Lease to hear of a gateway that has one, and to withdraw: at most heartbeat.Silence,
	// trustPeriod after that, and some reserve.
	candidateDelay = 1500 * time.Millisecond
	flapWindow     = 10 * time.Minute
)

// candidate decides when a gateway is a candidate in elections.
type candidate struct {
	// active: the last update returned true.
	active bool
	// ableSince is when the gateway became able. lastFailure is the last time that a candidate became unable, and failures counts these times.
	ableSince, lastFailure time.Time
	failures               int
}

// update reports whether the gateway is a candidate now. If there is no peer, there is nothing to wait for. If peers are heard and none is a
// candidate, they may answer without a Lease until they have heard this gateway.
func (c *candidate) update(able, otherCandidates, noPeer bool, now time.Time) bool {
	if !able {
		if c.active {
			if now.Sub(c.lastFailure) > flapWindow {
				c.failures = 0
			}
			c.failures++
			c.lastFailure = now
		}
		c.active, c.ableSince = false, time.Time{}
		return false
	}
	if c.ableSince.IsZero() {
		c.ableSince = now
	}
	delay := candidateDelay
	switch {
	case otherCandidates:
		delay = c.returnDelay()
	case noPeer:
		delay = 0
	}
	c.active = c.active || now.Sub(c.ableSince) >= delay
	return c.active
}

func (c *candidate) returnDelay() time.Duration {
	return min(minReturnDelay<<min(c.failures, 10), maxReturnDelay)
}
