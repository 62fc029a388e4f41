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

// refusals tell Services that wait for the management cluster why it does not listen. The controllers cannot: they do not begin before they have read what
// is there, as when the Tenant was deleted and this CCM has started again since.
type refusals struct {
	services *serviceReconciler
	// served is an error that says why the management cluster does not listen; nil if it does.
	served func(context.Context) error
	failed int
}

// refusedLooks is after how many looks in a row a management cluster that does not listen is told of.
const refusedLooks = 2

// Start looks again and again until ctx ends.
func (r *refusals) Start(ctx context.Context) error {
	wait.NonSlidingUntilWithContext(ctx, r.look, reportEvery)
	return nil
}

func (r *refusals) look(ctx context.Context) {
	why := r.served(ctx)
	if why == nil {
		r.failed = 0
		r.services.away.is(nil, time.Now())
		return
	}
	if r.failed++; r.failed < refusedLooks || ctx.Err() != nil {
		return
	}
	r.services.away.is(why, time.Now())
	var services corev1.ServiceList
	if err := r.services.tenant.List(ctx, &services); err != nil {
		log.FromContext(ctx).Error(err, "look for Services that wait for the management cluster")
		return
	}
	for i := range services.Items {
		if err := r.tell(ctx, &services.Items[i], why); err != nil {
			log.FromContext(ctx).Error(err, "tell a Service why it waits", "service", services.Items[i].Name, "namespace", services.Items[i].Namespace)
		}
	}
}

// tell says in the condition and an event why the Service waits, if it does: to be cleaned up after, or to be looked at for the first time. Of one that is
// served it says that nobody knows it any more. Of others the controllers have said what there is to say.
func (r *refusals) tell(ctx context.Context, service *corev1.Service, why error) error {
	owned := service.DeletionTimestamp == nil && translate.Owns(convert.Service(service), r.services.config.ClassRequired)
	known := meta.FindStatusCondition(service.Status.Conditions, conditionReady)
	condition := metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonHubRefused, Message: "it waits for an address: " + why.Error()}
	switch {
	case owned && known == nil:
	case owned && known.Status == metav1.ConditionTrue:
		condition = r.services.away.doubt(*known)
	case !owned && r.services.config.was(service):
		condition.Message = "it waits until the management cluster has let go of its addresses: " + why.Error() +
			". If this cluster is not to be served from there any more, stop kubelb-ccm and run: kubelb-ccm --release"
	default:
		return nil
	}
	return r.services.publish(ctx, service, nil, condition, nil)
}
