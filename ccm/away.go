package ccm

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// reasonHubSilent of a Service's condition: the management cluster said that the Service is served, and does not answer now.
const reasonHubSilent = "HubSilent"

// away is since when the management cluster does not listen, and why: what it has said is of then.
type away struct {
	mu sync.Mutex // guards those below
	// why is empty while it listens; refuses: it answers, and refuses. listened is when it did last.
	why      string
	refuses  bool
	listened time.Time
	changed  chan event.GenericEvent
}

func newAway(now time.Time) *away {
	return &away{listened: now, changed: make(chan event.GenericEvent, 1)}
}

// is takes over what a look has found; failed is nil if the management cluster listens. A text that differs a little each time is taken over once.
func (a *away) is(failed error, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if failed == nil {
		a.listened = now
		if a.why == "" {
			return
		}
		a.why = ""
		a.tell()
		return
	}
	refuses := apierrors.IsUnauthorized(failed) || apierrors.IsForbidden(failed)
	if a.why != "" && a.refuses == refuses {
		return
	}
	a.refuses = refuses
	a.why = fmt.Sprintf("nothing has been heard of the management cluster since %s: %v", a.listened.UTC().Format(time.RFC3339), failed)
	a.tell()
}

func (a *away) tell() {
	select {
	case a.changed <- event.GenericEvent{Object: &corev1.Service{}}:
	default: // told already, and not yet heard
	}
}

// doubt returns what is known of a Service, where c is what the management cluster has said of it.
func (a *away) doubt(c metav1.Condition) metav1.Condition {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.why == "" || c.Status != metav1.ConditionTrue {
		return c
	}
	return metav1.Condition{Type: c.Type, Status: metav1.ConditionUnknown, Reason: reasonHubSilent, Message: fmt.Sprintf("%s. Until then it said: %s", a.why, c.Message)}
}

// allServices are the Services of type LoadBalancer.
func (r *serviceReconciler) allServices(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.servicesOf(ctx, func(corev1.ServiceExternalTrafficPolicy) bool { return true })
}
