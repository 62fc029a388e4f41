package probe

import (
	"container/heap"
	"math"
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// job is one target with its schedule.
type job struct {
	target   translate.Target
	due      time.Time
	failures int
	// health is what was told last.
	health translate.Health
	flaps  flaps
	lane   *lane
	index  int // in the lane's waiting; -1 while it is due or checked
	gone   bool
}

// lane is a queue of targets of which so many may be checked at the same time. Half of the slots are guaranteed, to each tenant as many as to
// another one; the other half is for who needs more, and each takes at most as much of it as it leaves free. So there is always a slot
// for a tenant that has few checks under way, whatever others' targets do, and one that is alone has nearly all.
type lane struct {
	slots   int
	waiting schedule
	shares  map[string]*share
	// turn are the shares that have targets that are due, in the order in which they are asked; beyond is how many slots are taken beyond
	// guarantees.
	turn   []*share
	beyond int
}

// share is a tenant's part of a lane.
type share struct {
	jobs, busy int
	due        []*job
}

// lanes are three, so that no tenant's targets that answer late or never keep its others waiting: prompt is for those that have answered at
// once when they were asked last, missed for those that have done so until they missed, and count as healthy still; doubtful is for all
// others, the new ones included.
type lanes struct{ prompt, missed, doubtful *lane }

func newLanes(slots int) lanes {
	fresh := func() *lane { return &lane{slots: slots, shares: map[string]*share{}} }
	return lanes{fresh(), fresh(), fresh()}
}

// begin checks what is due in each lane, and tells how long until something else is due.
func (l lanes) begin(now time.Time, check func(*job)) time.Duration {
	return min(l.prompt.begin(now, check), l.missed.begin(now, check), l.doubtful.begin(now, check))
}

// after is where a target waits for its next check, timeout being how long one may take.
func (l lanes) after(o outcome, timeout time.Duration) *lane {
	switch {
	case o.err == nil && o.took < timeout/2:
		return l.prompt
	case o.err != nil && o.job.health.State != model.Unhealthy && o.job.lane != l.doubtful:
		return l.missed
	}
	return l.doubtful
}

// add has a target wait in the lane until it is due.
func (l *lane) add(j *job) {
	s := l.shares[j.target.Tenant]
	if s == nil {
		s = &share{}
		l.shares[j.target.Tenant] = s
		l.recount()
	}
	s.jobs++
	j.lane = l
	heap.Push(&l.waiting, j)
}

// leave takes a target out of the lane that is checked, or waits no more.
func (l *lane) leave(j *job) {
	s := l.shares[j.target.Tenant]
	if s.jobs--; s.jobs == 0 {
		delete(l.shares, j.target.Tenant)
		l.recount()
	}
}

// guarantee is how many slots each tenant has for itself.
func (l *lane) guarantee() int { return max(1, l.slots/2/max(1, len(l.shares))) }

// recount counts anew what is beyond guarantees, which have changed.
func (l *lane) recount() {
	l.beyond = 0
	for _, s := range l.shares {
		l.beyond += max(0, s.busy-l.guarantee())
	}
}

// mayBegin tells whether another target of the share may be checked.
func (l *lane) mayBegin(s *share) bool {
	more := s.busy - l.guarantee()
	return more < 0 || more < l.slots/2-l.beyond
}

// begin checks what is due, as far as may be at the same time, and tells how long until something else is due. It is for ever where
// that is not for the clock to say.
func (l *lane) begin(now time.Time, check func(*job)) time.Duration {
	for l.waiting.Len() > 0 && !l.waiting[0].due.After(now) {
		j := heap.Pop(&l.waiting).(*job)
		s := l.shares[j.target.Tenant]
		if s.due = append(s.due, j); len(s.due) == 1 {
			l.turn = append(l.turn, s)
		}
	}
	for began := true; began; {
		began = false
		waiting := l.turn[:0]
		for _, s := range l.turn {
			began = l.beginOne(s, check) || began
			if len(s.due) > 0 {
				waiting = append(waiting, s)
			}
		}
		clear(l.turn[len(waiting):])
		l.turn = waiting
	}
	if l.waiting.Len() == 0 {
		return math.MaxInt64
	}
	return l.waiting[0].due.Sub(now)
}

// beginOne checks the share's next target, if it may.
func (l *lane) beginOne(s *share, check func(*job)) bool {
	for len(s.due) > 0 && s.due[0].gone {
		l.leave(s.due[0])
		s.due = s.due[1:]
	}
	if len(s.due) == 0 || !l.mayBegin(s) {
		return false
	}
	j := s.due[0]
	s.due = s.due[1:]
	if s.busy++; s.busy > l.guarantee() {
		l.beyond++
	}
	check(j)
	return true
}

// end is when a target has been checked.
func (l *lane) end(j *job) {
	s := l.shares[j.target.Tenant]
	if s.busy > l.guarantee() {
		l.beyond--
	}
	s.busy--
	l.leave(j)
}

// forget drops a target that waits; one that is due or checked is dropped when its turn has come, or it has ended.
func (l *lane) forget(j *job) {
	j.gone = true
	if j.index >= 0 {
		heap.Remove(&l.waiting, j.index)
		l.leave(j)
	}
}

// schedule is a heap of jobs, the next due first.
type schedule []*job

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(a, b int) bool { return s[a].due.Before(s[b].due) }
func (s schedule) Swap(a, b int) {
	s[a], s[b] = s[b], s[a]
	s[a].index, s[b].index = a, b
}

// Push implements heap.Interface.
func (s *schedule) Push(x any) {
	j := x.(*job)
	j.index = len(*s)
	*s = append(*s, j)
}

// Pop implements heap.Interface.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	j := (*s)[last]
	*s = (*s)[:last]
	j.index = -1
	return j
}
