package conformance

import (
	"slices"
	"sync"
	"time"

	"kubelb.k8c.io/conformance/cases"
)

// Monitor tells what a suite does while it runs. It is safe for concurrent use, and its zero value is ready to use.
type Monitor struct {
	mu        sync.Mutex // guards what follows
	running   []*running
	done, all int
}

type running struct {
	name, family string
	began        time.Time
	activity     cases.Activity
}

// Running is a run that is not done.
type Running struct {
	Case, Family string
	Began        time.Time
	// Doing is what the run does, since Since.
	Doing string
	Since time.Time
}

// Running returns the runs that are not done, in the order in which they began, and how many of all cases are done.
func (m *Monitor) Running() (runs []Running, done, all int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.running {
		doing, since := r.activity.Doing()
		runs = append(runs, Running{r.name, r.family, r.began, doing, since})
	}
	return runs, m.done, m.all
}

// begin registers a run. The caller calls end when it is done.
func (m *Monitor) begin(name, family string) (a *cases.Activity, end func()) {
	r := &running{name: name, family: family, began: time.Now()}
	if m == nil {
		return &r.activity, func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = append(m.running, r)
	return &r.activity, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.running = slices.DeleteFunc(m.running, func(other *running) bool { return other == r })
	}
}

// cases sets how many of all cases are done.
func (m *Monitor) cases(done, all int) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done, m.all = done, all
}
