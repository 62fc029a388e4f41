package ownership

import "time"

// A gateway that comes back takes its addresses back only after it has been well for a while, and each time that it was not within
// flapping doubles that.
const (
	returnAfter  = 5 * time.Second
	returnAtMost = 5 * time.Minute
	// candidateDelay is how long it takes others that have gone on without a lease to hear of one that has, and to let go: heartbeat.Silence at
	// most, and trusted after that, and some time to spare.
	candidateDelay = 1500 * time.Millisecond
	flappingWithin = 10 * time.Minute
)

// candidate decides when a gateway is a candidate in elections.
type candidate struct {
	// was: it was a candidate at the last look.
	was bool
	// able since when; failed when, at last, and how often in a row.
	since, failed time.Time
	failures      int
}

// isCandidate tells whether the gateway is a candidate now. Where it is alone there is nothing to wait for; where no other is a candidate, those that
// are on the segment may answer without a lease, until they have heard this one.
func (c *candidate) isCandidate(able, others, alone bool, now time.Time) bool {
	if !able {
		if c.was {
			if now.Sub(c.failed) > flappingWithin {
				c.failures = 0
			}
			c.failures++
			c.failed = now
		}
		c.was, c.since = false, time.Time{}
		return false
	}
	if c.since.IsZero() {
		c.since = now
	}
	wait := candidateDelay
	switch {
	case others:
		wait = c.wait()
	case alone:
		wait = 0
	}
	c.was = c.was || now.Sub(c.since) >= wait
	return c.was
}

func (c *candidate) wait() time.Duration {
	return min(returnAfter<<min(c.failures, 10), returnAtMost)
}
