package controller

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// generationDelay delays the write of a status in which only generations differ. Each write of a status costs the API server as much as the whole object: a
// tenant that changes large objects all the time would cause three writes for each change. Further changes of the status mostly come within this time, and
// are written together.
const generationDelay = time.Second

// statusThrottle knows which writes of statuses are delayed. The controller's workers share it.
type statusThrottle struct {
	mu     sync.Mutex // guards of
	byName map[client.ObjectKey]throttledWrite
}

// throttledWrite is when a status was written last, and when its delayed write is due.
type throttledWrite struct{ written, due time.Time }

func newStatusThrottle() *statusThrottle {
	return &statusThrottle{byName: map[client.ObjectKey]throttledWrite{}}
}

// delay returns for how long to delay the write of a status in which only generations differ. pending: reports of gateways about the generation are still
// missing.
func (p *statusThrottle) delay(key client.ObjectKey, now time.Time, pending bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.byName[key]
	latest, least := now.Add(generationDelay), at.written.Add(generationDelay)
	switch {
	case pending && at.due.IsZero():
		at.due = latest
	case !pending && (at.due.IsZero() || at.due.After(least)):
		at.due = least
	}
	p.byName[key] = at
	return max(at.due.Sub(now), 0)
}

func (p *statusThrottle) written(key client.ObjectKey, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byName[key] = throttledWrite{written: now}
}

// clear removes the delayed write: nothing differs any more.
func (p *statusThrottle) clear(key client.ObjectKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, known := p.byName[key]; known {
		at.due = time.Time{}
		p.byName[key] = at
	}
}

func (p *statusThrottle) remove(key client.ObjectKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byName, key)
}

// differOnlyInGeneration reports whether the statuses are equal except for the generations.
func differOnlyInGeneration(before, after v1alpha1.LoadBalancerStatus) bool {
	return equality.Semantic.DeepEqual(withoutGenerations(before), withoutGenerations(after))
}

func withoutGenerations(s v1alpha1.LoadBalancerStatus) v1alpha1.LoadBalancerStatus {
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		s.Conditions[i].ObservedGeneration = 0
	}
	return s
}
