package ccm

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/core/translate"
)

// outageReporter writes into the conditions of Services why the hub accepts no requests. The controllers cannot do so: they start only after they have read
// all objects of the hub, which never happens if, for example, the Tenant was deleted before the CCM started.
type outageReporter struct {
	services *serviceReconciler
	// checkHub returns an error that says why the hub does not accept requests; nil if it does.
	checkHub func(context.Context) error
	// failures counts the checks in a row that have failed.
	failures int
}

// failuresBeforeReport is the number of failed checks in a row after which the conditions of Services change.
const failuresBeforeReport = 2

// Start checks the hub until ctx ends.
func (r *outageReporter) Start(ctx context.Context) error {
	wait.NonSlidingUntilWithContext(ctx, r.check, hubCheckEvery)
	return nil
}

func (r *outageReporter) check(ctx context.Context) {
	why := r.checkHub(ctx)
	if why == nil {
		r.failures = 0
		r.services.contact.set(nil, time.Now())
		return
	}
	if r.failures++; r.failures < failuresBeforeReport || ctx.Err() != nil {
		return
	}
	r.services.contact.set(why, time.Now())
	var services corev1.ServiceList
	if err := r.services.tenant.List(ctx, &services); err != nil {
		log.FromContext(ctx).Error(err, "cannot list Services that wait for the management cluster")
		return
	}
	for i := range services.Items {
		if err := r.report(ctx, &services.Items[i], why); err != nil {
			log.FromContext(ctx).Error(err, "cannot write into a Service's condition that the management cluster accepts no requests", "service", services.Items[i].Name, "namespace", services.Items[i].Namespace)
		}
	}
}

// report writes the reason into the condition and an event of a Service that waits for the hub: a Service that is new, or one that is no longer ours and still has
// its finalizer. The condition of a Service that was served becomes Unknown. All other Services keep the condition that the controllers have written.
func (r *outageReporter) report(ctx context.Context, service *corev1.Service, why error) error {
	owned := service.DeletionTimestamp == nil && translate.Owns(convert.Service(service), r.services.config.ClassRequired)
	known := meta.FindStatusCondition(service.Status.Conditions, conditionReady)
	condition := metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonHubRefused, Message: "the Service waits for an address: " + why.Error()}
	switch {
	case owned && known == nil:
	case owned && known.Status == metav1.ConditionTrue:
		condition = r.services.contact.unknownWhileSilent(*known)
	case !owned && r.services.config.wasOwned(service):
		condition.Message = "the Service waits until the management cluster has released its addresses: " + why.Error() +
			". If that management cluster does not serve this cluster any more, stop kubelb-ccm and run: kubelb-ccm --release"
	default:
		return nil
	}
	return r.services.publish(ctx, service, nil, condition, nil)
}
