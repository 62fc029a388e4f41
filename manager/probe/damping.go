package probe

import (
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// Each change of a target's health changes the tenant's pools, which costs the gateway more than it costs the tenant. So recoveries and weights are
// damped. A target that gets worse is reported at once.
const (
	// undampedRecoveries is how many times in a row a target may recover at once. Each further recovery within calmPeriod after the last one waits
	// for twice as long, from minHold to maxHold.
	undampedRecoveries = 3
	calmPeriod         = time.Minute
	minHold, maxHold   = 5 * time.Second, time.Minute
	// Changes of weights alone are reported in windows. A window lasts weightWindow for all targets of a tenant. The pause after it doubles as long
	// as there is a change to report at its end.
	weightWindow       = time.Second
	minPause, maxPause = time.Second, 30 * time.Second
)

// weightReports says when the weights of a tenant's targets may be reported.
type weightReports struct {
	jobs                  int
	windowEnd, nextWindow time.Time
	pause                 time.Duration
}

// allow reports whether a weight may be reported now.
func (w *weightReports) allow(now time.Time) bool {
	switch {
	case now.Before(w.windowEnd):
		return true
	case now.Before(w.nextWindow):
		return false
	case now.Sub(w.nextWindow) > calmPeriod:
		w.pause = minPause
	default:
		w.pause = min(2*w.pause, maxPause)
	}
	w.windowEnd = now.Add(weightWindow)
	w.nextWindow = w.windowEnd.Add(w.pause)
	return true
}

// flapDamping counts the recoveries of a target, and delays frequent ones.
type flapDamping struct {
	recoveries              int
	lastRecovery, heldUntil time.Time
	held                    bool
}

// allowRecovery reports whether the recovery of a target counts now. It is called at each check.
func (f *flapDamping) allowRecovery(now time.Time) bool {
	if !f.held {
		if f.recoveries++; now.Sub(f.lastRecovery) > calmPeriod {
			f.recoveries = 1
		}
		f.held, f.heldUntil = true, now
		if damped := f.recoveries - undampedRecoveries; damped > 0 {
			f.heldUntil = now.Add(min(minHold<<min(damped-1, 10), maxHold))
		}
	}
	if now.Before(f.heldUntil) {
		return false
	}
	f.held, f.lastRecovery = false, now
	return true
}

// shouldReport decides whether a target's health is reported now. If not, its next check decides again.
func (p *Prober) shouldReport(j *job, health translate.Health, now time.Time) bool {
	switch state, former := health.State, j.health.State; {
	case state == former:
		j.damping.held = false
		return health.Weight != j.health.Weight && (j.health.Weight == 0 || p.weightReportsOf(j).allow(now))
	case former == model.Active:
		j.damping.held = false
		return true
	}
	return j.damping.allowRecovery(now)
}

func (p *Prober) weightReportsOf(j *job) *weightReports {
	w := p.weights[j.target.Tenant]
	if w == nil {
		w = &weightReports{pause: minPause}
		p.weights[j.target.Tenant] = w
	}
	return w
}
