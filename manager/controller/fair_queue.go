package controller

import (
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// turns stores what waits for a controller. Namespaces take turns: an object waits for one of each other tenant's, not for all that one of them
// has changed.
type turns struct {
	of map[string][]reconcile.Request
	// next are the namespaces that have some, in the order of their turns.
	next []string
	n    int
}

// inTurns makes a controller's queue of that kind.
func inTurns(name string, limiter workqueue.TypedRateLimiter[reconcile.Request]) workqueue.TypedRateLimitingInterface[reconcile.Request] {
	queue := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[reconcile.Request]{Name: name, Queue: &turns{of: map[string][]reconcile.Request{}}})
	return workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{Name: name,
		DelayingQueue: workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[reconcile.Request]{Name: name, Queue: queue})})
}

// Touch implements workqueue.Queue: what waits keeps its place.
func (t *turns) Touch(reconcile.Request) {}

// Push implements workqueue.Queue.
func (t *turns) Push(r reconcile.Request) {
	if len(t.of[r.Namespace]) == 0 {
		t.next = append(t.next, r.Namespace)
	}
	t.of[r.Namespace] = append(t.of[r.Namespace], r)
	t.n++
}

// Len implements workqueue.Queue.
func (t *turns) Len() int { return t.n }

// Pop implements workqueue.Queue.
func (t *turns) Pop() reconcile.Request {
	namespace := t.next[0]
	t.next = t.next[1:]
	first, rest := t.of[namespace][0], t.of[namespace][1:]
	t.n--
	if len(rest) == 0 {
		delete(t.of, namespace)
		return first
	}
	t.of[namespace] = rest
	t.next = append(t.next, namespace)
	return first
}
