package report

import (
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

const (
	// CountEvery is how often the dataplane's counters are read, CountLimit how long that may take.
	CountEvery = 15 * time.Second
	CountLimit = 15 * time.Second
	// countedFor is for how long counters count that were read.
	countedFor = 3 * CountEvery
	// countAgainAfter is the pause after counters could not be read.
	countAgainAfter = time.Second
	// unansweredAfter is how long requests have to fail. A single timeout is not enough: the dataplane may have been busy.
	unansweredAfter = CountLimit + 10*time.Second
)

// Counters are those of the dataplane as they were read last.
type Counters struct {
	// asked is when they were asked for last, reading that this is under way.
	asked   time.Time
	reading bool
	// read is when they were read last, use what tenants use of their limits by them.
	read time.Time
	use  []v1alpha1.GatewayTenantUse
	// failingSince is when the first of the failed requests in a row was made, zero if the last request succeeded. lastError is the last error.
	failingSince time.Time
	lastError    string
}

// Ask tells whether the counters are to be read now, and how long after the last time. They are usually read after every; Answered follows.
func (c *Counters) Ask(every time.Duration, now time.Time) (ago time.Duration, is bool) {
	if !c.failingSince.IsZero() {
		every = min(every, countAgainAfter)
	}
	if c.reading || now.Sub(c.asked) < every {
		return 0, false
	}
	ago = now.Sub(c.asked)
	c.asked, c.reading = now, true
	return ago, true
}

// Answered notes that a request has ended.
func (c *Counters) Answered() { c.reading = false }

// NoteAnswer takes over whether the dataplane has answered a request that was made at askedAt. A call that takes long keeps counters waiting by right:
// BackendBusy says so, and at its deadline the plugin is started again.
func (c *Counters) NoteAnswer(err error, askedAt time.Time, calling bool) {
	switch {
	case err == nil:
		c.failingSince, c.lastError = time.Time{}, ""
	case !calling:
		if c.failingSince.IsZero() {
			c.failingSince = askedAt
		}
		c.lastError = err.Error()
	}
}

// Unanswered is why the dataplane does not return its counters, empty if it does, or if that is not known yet.
func (c *Counters) Unanswered(now time.Time) string {
	if c.failingSince.IsZero() || now.Sub(c.failingSince) < unansweredAfter {
		return ""
	}
	return c.lastError
}

// Take takes over the counters of the frontends, which were read the time ago before. before are those that were read then.
func (c *Counters) Take(frontends []model.Frontend, is, before map[model.FrontendKey]dataplane.Counter, ago time.Duration, now time.Time) {
	c.read, c.use = now, useOf(frontends, is, before, ago)
}

// Use is what tenants use of their limits. Nobody knows it while the dataplane does not return its counters.
func (c *Counters) Use(now time.Time) []v1alpha1.GatewayTenantUse {
	if now.Sub(c.read) > countedFor {
		return nil
	}
	return c.use
}
