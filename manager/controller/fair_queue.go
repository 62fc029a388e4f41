package controller

import (
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// fairQueue is the queue of a controller in which namespaces take turns: an object waits for one object of each other namespace, not for all changes of
// one namespace.
type fairQueue struct {
	of map[string][]reconcile.Request
	// next are the namespaces with requests, in the order of their turns.
	next []string
	n    int
}

// newFairQueue returns a fairQueue for a controller.
func newFairQueue(name string, limiter workqueue.TypedRateLimiter[reconcile.Request]) workqueue.TypedRateLimitingInterface[reconcile.Request] {
	queue := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[reconcile.Request]{Name: name, Queue: &fairQueue{of: map[string][]reconcile.Request{}}})
	return workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{Name: name,
		DelayingQueue: workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[reconcile.Request]{Name: name, Queue: queue})})
}

// Touch implements workqueue.Queue. A request keeps its place.
func (t *fairQueue) Touch(reconcile.Request) {}

// Push implements workqueue.Queue.
func (t *fairQueue) Push(r reconcile.Request) {
	if len(t.of[r.Namespace]) == 0 {
		t.next = append(t.next, r.Namespace)
	}
	t.of[r.Namespace] = append(t.of[r.Namespace], r)
	t.n++
}

// Len implements workqueue.Queue.
func (t *fairQueue) Len() int { return t.n }

// Pop implements workqueue.Queue.
func (t *fairQueue) Pop() reconcile.Request {
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
