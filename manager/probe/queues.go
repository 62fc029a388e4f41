package probe

import (
	"container/heap"
	"math"
	"time"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// job is a target with its schedule.
type job struct {
	target   translate.Target
	due      time.Time
	failures int
	// health is what was reported last.
	health  translate.Health
	damping flapDamping
	queue   *queue
	index   int // in queue.waiting; -1 while the job is due, or its check runs
	removed bool
}

// queue holds targets, and limits how many of them are checked at the same time. Half of the slots are guaranteed: each tenant has an equal part of
// them. Tenants that need more share the other half, and a tenant takes at most as much of it as it leaves free. So a tenant with few running checks
// always finds a slot, whatever the targets of others do, and a tenant that is alone can use nearly all slots.
type queue struct {
	slots   int
	waiting jobHeap
	shares  map[string]*share
	// ready are the shares with due targets, in the order in which they are served. aboveGuarantee is how many slots are in use beyond guarantees.
	ready          []*share
	aboveGuarantee int
}

// share is the part of a queue that belongs to one tenant.
type share struct {
	jobs, running int
	due           []*job
}

// queues are three, so that slow or silent targets of a tenant do not delay its other targets. prompt has targets that answered promptly when they
// were checked last. missed has targets of prompt that failed since, and still count as healthy. other has all others, including new targets.
type queues struct{ prompt, missed, other *queue }

func newQueues(slots int) queues {
	newQueue := func() *queue { return &queue{slots: slots, shares: map[string]*share{}} }
	return queues{newQueue(), newQueue(), newQueue()}
}

// start starts the checks that are due, and returns how long until the next one is due.
func (q queues) start(now time.Time, startCheck func(*job)) time.Duration {
	return min(q.prompt.start(now, startCheck), q.missed.start(now, startCheck), q.other.start(now, startCheck))
}

// queueFor returns the queue in which a target waits for its next check. timeout is the limit of one check.
func (q queues) queueFor(o outcome, timeout time.Duration) *queue {
	switch {
	case o.err == nil && o.took < timeout/2:
		return q.prompt
	case o.err != nil && o.job.health.State != model.Unhealthy && o.job.queue != q.other:
		return q.missed
	}
	return q.other
}

// add puts a target into the queue until it is due.
func (q *queue) add(j *job) {
	s := q.shares[j.target.Tenant]
	if s == nil {
		s = &share{}
		q.shares[j.target.Tenant] = s
		q.recount()
	}
	s.jobs++
	j.queue = q
	heap.Push(&q.waiting, j)
}

// remove takes a target out of the queue. Its check has ended, or it does not wait any more.
func (q *queue) remove(j *job) {
	s := q.shares[j.target.Tenant]
	if s.jobs--; s.jobs == 0 {
		delete(q.shares, j.target.Tenant)
		q.recount()
	}
}

// guaranteed returns how many slots each tenant has for itself.
func (q *queue) guaranteed() int { return max(1, q.slots/2/max(1, len(q.shares))) }

// recount recalculates aboveGuarantee after the guarantees have changed.
func (q *queue) recount() {
	q.aboveGuarantee = 0
	for _, s := range q.shares {
		q.aboveGuarantee += max(0, s.running-q.guaranteed())
	}
}

// hasSlot reports whether the share may start another check.
func (q *queue) hasSlot(s *share) bool {
	extra := s.running - q.guaranteed()
	return extra < 0 || extra < q.slots/2-q.aboveGuarantee
}

// start starts due checks as far as there are slots, and returns how long until the next target is due. It returns the longest time if no target
// waits: a check that ends will call start again.
func (q *queue) start(now time.Time, startCheck func(*job)) time.Duration {
	for q.waiting.Len() > 0 && !q.waiting[0].due.After(now) {
		j := heap.Pop(&q.waiting).(*job)
		s := q.shares[j.target.Tenant]
		if s.due = append(s.due, j); len(s.due) == 1 {
			q.ready = append(q.ready, s)
		}
	}
	for started := true; started; {
		started = false
		remaining := q.ready[:0]
		for _, s := range q.ready {
			started = q.startNext(s, startCheck) || started
			if len(s.due) > 0 {
				remaining = append(remaining, s)
			}
		}
		clear(q.ready[len(remaining):])
		q.ready = remaining
	}
	if q.waiting.Len() == 0 {
		return math.MaxInt64
	}
	return q.waiting[0].due.Sub(now)
}

// startNext starts the check of the share's next target, if there is a slot.
func (q *queue) startNext(s *share, startCheck func(*job)) bool {
	for len(s.due) > 0 && s.due[0].removed {
		q.remove(s.due[0])
		s.due = s.due[1:]
	}
	if len(s.due) == 0 || !q.hasSlot(s) {
		return false
	}
	j := s.due[0]
	s.due = s.due[1:]
	if s.running++; s.running > q.guaranteed() {
		q.aboveGuarantee++
	}
	startCheck(j)
	return true
}

// finish releases the slot of a target whose check has ended.
func (q *queue) finish(j *job) {
	s := q.shares[j.target.Tenant]
	if s.running > q.guaranteed() {
		q.aboveGuarantee--
	}
	s.running--
	q.remove(j)
}

// cancel drops a target. If it waits, this happens at once; else on its turn, or at the end of its check.
func (q *queue) cancel(j *job) {
	j.removed = true
	if j.index >= 0 {
		heap.Remove(&q.waiting, j.index)
		q.remove(j)
	}
}

// jobHeap is a heap of jobs. The job that is due next comes first.
type jobHeap []*job

func (h jobHeap) Len() int           { return len(h) }
func (h jobHeap) Less(a, b int) bool { return h[a].due.Before(h[b].due) }
func (h jobHeap) Swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].index, h[b].index = a, b
}

// Push implements heap.Interface.
func (h *jobHeap) Push(x any) {
	j := x.(*job)
	j.index = len(*h)
	*h = append(*h, j)
}

// Pop implements heap.Interface.
func (h *jobHeap) Pop() any {
	last := len(*h) - 1
	j := (*h)[last]
	*h = (*h)[:last]
	j.index = -1
	return j
}
