package ccm

import (
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// reasonChangeUnconfirmed is the reason of a Service's condition: the Service is served, but the hub has not confirmed its last change yet.
const reasonChangeUnconfirmed = "ChangeUnconfirmed"

// unconfirmedAfter is how long a change may be unconfirmed before the Service's condition says so.
const unconfirmedAfter = 10 * time.Second

// generationLag measures, for each Service, how long the condition Ready of its LoadBalancer has been of an earlier generation. The zero value is empty and
// ready. It is safe for concurrent use.
type generationLag struct {
	mu    sync.Mutex // guards since
	since map[client.ObjectKey]lagging
}

// lagging is an earlier generation that Ready is of, and when that was seen first.
type lagging struct {
	generation int64
	since      time.Time
}

// check compares the generation of the LoadBalancer with the observedGeneration of its condition Ready. If Ready is of an earlier generation, the Service's
// condition c keeps its former observedGeneration. If that lasts for unconfirmedAfter, the condition says so. again is the time until then, 0 if there is nothing
// to wait for.
func (l *generationLag) check(service *corev1.Service, lb *v1alpha1.LoadBalancer, c metav1.Condition, now time.Time) (out metav1.Condition, again time.Duration) {
	c.ObservedGeneration = service.Generation
	key, ready := client.ObjectKeyFromObject(service), meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
	// A manager of KubeLB sets no generation.
	if ready == nil || ready.ObservedGeneration == 0 || ready.ObservedGeneration >= lb.Generation {
		l.remove(key)
		return c, 0
	}
	if known := meta.FindStatusCondition(service.Status.Conditions, conditionReady); known != nil {
		c.ObservedGeneration = known.ObservedGeneration
	}
	if c.Status != metav1.ConditionTrue {
		return c, 0
	}
	if wait := l.firstSeen(key, ready.ObservedGeneration, now).Add(unconfirmedAfter).Sub(now); wait > 0 {
		return c, wait
	}
	const unconfirmed = "as it was before its last change, which the management cluster has not confirmed yet"
	if strings.HasPrefix(c.Message, servedBut) {
		c.Message += "; it is " + unconfirmed
	} else {
		c.Message = servedBut + unconfirmed
	}
	c.Reason = reasonChangeUnconfirmed
	return c, 0
}

// firstSeen returns when Ready was first seen to be of this earlier generation.
func (l *generationLag) firstSeen(key client.ObjectKey, generation int64, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if is, known := l.since[key]; known && is.generation == generation {
		return is.since
	}
	if l.since == nil {
		l.since = map[client.ObjectKey]lagging{}
	}
	l.since[key] = lagging{generation, now}
	return now
}

// remove removes a Service.
func (l *generationLag) remove(key client.ObjectKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.since, key)
}
