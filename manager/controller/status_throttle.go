package controller

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// restatement is how long a status waits in which only generations differ. Each write of a status costs the API server as much as the whole object: a
// tenant that changes large objects all the time would have the controller do it thrice for each change. What follows mostly comes within that time, and
// is written together with it.
const restatement = time.Second

// pace remembers which statuses wait to be written. It is shared by the controller's workers.
type pace struct {
	mu sync.Mutex // guards of
	of map[client.ObjectKey]paced
}

// paced is when a status was written last, and when it is to be written, if it waits.
type paced struct{ written, due time.Time }

func newPace() *pace { return &pace{of: map[client.ObjectKey]paced{}} }

// wait is for how long a status is not to be written in which only generations differ; 0 means that it is to be written now. more tells whether
// gateways have yet to say something about the generation.
func (p *pace) wait(key client.ObjectKey, now time.Time, more bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.of[key]
	latest, least := now.Add(restatement), at.written.Add(restatement)
	switch {
	case more && at.due.IsZero():
		at.due = latest
	case !more && (at.due.IsZero() || at.due.After(least)):
		at.due = least
	}
	p.of[key] = at
	return max(at.due.Sub(now), 0)
}

func (p *pace) wrote(key client.ObjectKey, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[key] = paced{written: now}
}

// settled notes that nothing differs any more.
func (p *pace) settled(key client.ObjectKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, known := p.of[key]; known {
		at.due = time.Time{}
		p.of[key] = at
	}
}

func (p *pace) forget(key client.ObjectKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.of, key)
}

// restates tells whether the statuses say the same of different generations.
func restates(before, after v1alpha1.LoadBalancerStatus) bool {
	return equality.Semantic.DeepEqual(ofNoGeneration(before), ofNoGeneration(after))
}

func ofNoGeneration(s v1alpha1.LoadBalancerStatus) v1alpha1.LoadBalancerStatus {
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		s.Conditions[i].ObservedGeneration = 0
	}
	return s
}
