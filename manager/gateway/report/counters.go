package report

import (
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

const (
	// CountInterval is how often the dataplane's counters are read, CountTimeout how long this may take.
	CountInterval = 15 * time.Second
	CountTimeout  = 15 * time.Second
	// useLifetime is how long the last counters count.
	useLifetime = 3 * CountInterval
	// countRetryInterval is the pause after a failed read.
	countRetryInterval = time.Second
	// dataplaneSilentAfter is how long reads have to fail. A single timeout is not enough: the dataplane may have been busy.
	dataplaneSilentAfter = CountTimeout + 10*time.Second
)

// Counters are the counters of the dataplane as they were read last.
type Counters struct {
	// requested is when the last read was requested, reading that it is under way.
	requested time.Time
	reading   bool
	// read is when they were read last, use what tenants use of their limits by them.
	read time.Time
	use  []v1alpha1.GatewayTenantUse
	// failingSince is the time of the first failed read in a row, zero if the last read succeeded. lastError is the last error.
	failingSince time.Time
	lastError    string
}

// Start reports whether the counters are to be read now, and how long after the last time. every is the usual interval. The caller calls Done after
// the read.
func (c *Counters) Start(interval time.Duration, now time.Time) (ago time.Duration, due bool) {
	if !c.failingSince.IsZero() {
		interval = min(interval, countRetryInterval)
	}
	if c.reading || now.Sub(c.requested) < interval {
		return 0, false
	}
	ago = now.Sub(c.requested)
	c.requested, c.reading = now, true
	return ago, true
}

// Done notes that a read has ended.
func (c *Counters) Done() { c.reading = false }

// SetResult sets the result of a read that was requested at the time. During a long call counters may wait: BackendBusy reports the call, and at its
// deadline the plugin is started again.
func (c *Counters) SetResult(err error, requested time.Time, calling bool) {
	switch {
	case err == nil:
		c.failingSince, c.lastError = time.Time{}, ""
	case !calling:
		if c.failingSince.IsZero() {
			c.failingSince = requested
		}
		c.lastError = err.Error()
	}
}

// Problem returns why the dataplane does not return its counters, empty if it does, or if this is not known yet.
func (c *Counters) Problem(now time.Time) string {
	if c.failingSince.IsZero() || now.Sub(c.failingSince) < dataplaneSilentAfter {
		return ""
	}
	return c.lastError
}

// Set takes over the counters of the frontends. before are the counters of the time ago.
func (c *Counters) Set(frontends []model.Frontend, current, before map[model.FrontendKey]dataplane.Counter, ago time.Duration, now time.Time) {
	c.read, c.use = now, useOf(frontends, current, before, ago)
}

// Use returns what tenants use of their limits, nothing while the dataplane does not return its counters.
func (c *Counters) Use(now time.Time) []v1alpha1.GatewayTenantUse {
	if now.Sub(c.read) > useLifetime {
		return nil
	}
	return c.use
}
