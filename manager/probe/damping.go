package probe

import (
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// What a tenant's targets say changes its pools, which costs the gateway more than it costs to say it. A change for the worse is told at once.
const (
	// freeReturns are how many times in a row a target may count as healthy again at once; each further one within calm of the one before
	// waits for twice as long, from firstHold to longestHold.
	freeReturns            = 3
	calm                   = time.Minute
	firstHold, longestHold = 5 * time.Second, time.Minute
	// Weights alone are told for a moment, all of a tenant's, and then not for a pause, which doubles as long as there is something to tell
	// after it.
	weightsFor               = time.Second
	firstPause, longestPause = time.Second, 30 * time.Second
)

// weights is when a tenant's weights are told.
type weights struct {
	jobs        int
	until, next time.Time
	pause       time.Duration
}

// mayTell tells whether a weight is told now.
func (w *weights) mayTell(now time.Time) bool {
	switch {
	case now.Before(w.until):
		return true
	case now.Before(w.next):
		return false
	case now.Sub(w.next) > calm:
		w.pause = firstPause
	default:
		w.pause = min(2*w.pause, longestPause)
	}
	w.until = now.Add(weightsFor)
	w.next = w.until.Add(w.pause)
	return true
}

// flaps is how often a target was out and has changed, and until when what it is then has to wait.
type flaps struct {
	returns      int
	last, holdTo time.Time
	held         bool
}

// mayReturn tells whether a target that was out is told to be otherwise now. It is asked at each check.
func (f *flaps) mayReturn(now time.Time) bool {
	if !f.held {
		if f.returns++; now.Sub(f.last) > calm {
			f.returns = 1
		}
		f.held, f.holdTo = true, now
		if more := f.returns - freeReturns; more > 0 {
			f.holdTo = now.Add(min(firstHold<<min(more-1, 10), longestHold))
		}
	}
	if now.Before(f.holdTo) {
		return false
	}
	f.held, f.last = false, now
	return true
}

// tells tells whether a target's health is to be reported now. If not, its next check asks again.
func (p *Prober) tells(j *job, health translate.Health, now time.Time) bool {
	switch is, was := health.State, j.health.State; {
	case is == was:
		j.flaps.held = false
		return health.Weight != j.health.Weight && (j.health.Weight == 0 || p.weightsOf(j).mayTell(now))
	case was == model.Active:
		j.flaps.held = false
		return true
	}
	return j.flaps.mayReturn(now)
}

func (p *Prober) weightsOf(j *job) *weights {
	w := p.weights[j.target.Tenant]
	if w == nil {
		w = &weights{pause: firstPause}
		p.weights[j.target.Tenant] = w
	}
	return w
}
