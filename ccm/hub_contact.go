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

// reasonHubSilent is the reason of a Service's condition: the hub has said that the Service is served, but the CCM cannot reach the hub now.
const reasonHubSilent = "HubSilent"

// hubContact is whether the hub accepts the CCM's requests. If it does not, its last answers may be out of date.
type hubContact struct {
	mu sync.Mutex // guards the fields below
	// outage says since when the hub accepts no requests, and the error. It is empty while the hub accepts them. refused: the hub answers, but refuses the
	// credentials. lastContact is the time of the last request that the hub accepted.
	outage      string
	refused     bool
	lastContact time.Time
	// changed gets an event when the contact is lost, found again, or lost for another reason.
	changed chan event.GenericEvent
}

func newHubContact(now time.Time) *hubContact {
	return &hubContact{lastContact: now, changed: make(chan event.GenericEvent, 1)}
}

// set records the result of a request; failed is nil if the hub has accepted it. The first error of an outage stays, since texts of errors differ a little
// each time. It is replaced if the hub begins to refuse the credentials, or ceases to.
func (a *hubContact) set(failed error, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if failed == nil {
		a.lastContact = now
		if a.outage == "" {
			return
		}
		a.outage = ""
		a.notify()
		return
	}
	refuses := apierrors.IsUnauthorized(failed) || apierrors.IsForbidden(failed)
	if a.outage != "" && a.refused == refuses {
		return
	}
	a.refused = refuses
	a.outage = fmt.Sprintf("the management cluster has not answered since %s: %v", a.lastContact.UTC().Format(time.RFC3339), failed)
	a.notify()
}

func (a *hubContact) notify() {
	select {
	case a.changed <- event.GenericEvent{Object: &corev1.Service{}}:
	default: // an event is waiting already
	}
}

// unknownWhileSilent returns the condition of a Service: c from the hub, or Unknown if c is True and there is no contact with the hub.
func (a *hubContact) unknownWhileSilent(c metav1.Condition) metav1.Condition {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.outage == "" || c.Status != metav1.ConditionTrue {
		return c
	}
	return metav1.Condition{Type: c.Type, Status: metav1.ConditionUnknown, Reason: reasonHubSilent, Message: fmt.Sprintf("%s. Before that, the condition was: %s", a.outage, c.Message)}
}

// allServices returns requests for all Services of type LoadBalancer.
func (r *serviceReconciler) allServices(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.servicesOf(ctx, func(corev1.ServiceExternalTrafficPolicy) bool { return true })
}
