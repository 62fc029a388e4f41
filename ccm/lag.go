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

// reasonChangeUnconfirmed of a Service's condition: the management cluster says that the Service is served, and means it as it was before its last change.
const reasonChangeUnconfirmed = "ChangeUnconfirmed"

// unconfirmedAfter is for how long a change may be on its way before the Service says so.
const unconfirmedAfter = 10 * time.Second

// lag is since when the Ready condition of a LoadBalancer is of an earlier generation. The zero value knows of none. It is safe for concurrent use.
type lag struct {
	mu    sync.Mutex
	since map[client.ObjectKey]lagging
}

// lagging is since when a LoadBalancer's Ready is of that generation, and not of the present one.
type lagging struct {
	generation int64
	since      time.Time
}

// note takes over whether the LoadBalancer's Ready is of its present generation. If it is not, the Service's condition is of the generation that it
// was of. Once that lasts, the condition says so. again is after which time that is, 0 if it is not waited for.
func (l *lag) note(service *corev1.Service, lb *v1alpha1.LoadBalancer, c metav1.Condition, now time.Time) (out metav1.Condition, again time.Duration) {
	c.ObservedGeneration = service.Generation
	key, ready := client.ObjectKeyFromObject(service), meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
	// A manager of KubeLB sets no generation.
	if ready == nil || ready.ObservedGeneration == 0 || ready.ObservedGeneration >= lb.Generation {
		l.forget(key)
		return c, 0
	}
	if known := meta.FindStatusCondition(service.Status.Conditions, conditionReady); known != nil {
		c.ObservedGeneration = known.ObservedGeneration
	}
	if c.Status != metav1.ConditionTrue {
		return c, 0
	}
	if wait := l.begin(key, ready.ObservedGeneration, now).Add(unconfirmedAfter).Sub(now); wait > 0 {
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

// begin is since when Ready is of that generation, and not of the present one.
func (l *lag) begin(key client.ObjectKey, generation int64, now time.Time) time.Time {
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

// forget ends what is known of a Service.
func (l *lag) forget(key client.ObjectKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.since, key)
}
