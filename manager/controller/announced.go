package controller

import (
	"context"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/convert"
)

// whereAnnouncedElsewhere wakes up all LoadBalancers when addresses may be announced by others than before, or by nobody. What else gateways say wakes up
// those that wait.
func (r *loadBalancerReconciler) whereAnnouncedElsewhere(matters func(before, after client.Object) bool) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	all := func(ctx context.Context, q queue) {
		for _, request := range r.inNamespace(ctx, "") {
			q.Add(request)
		}
	}
	return handler.Funcs{
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			if matters(e.ObjectOld, e.ObjectNew) {
				all(ctx, q)
			}
		},
		DeleteFunc: func(ctx context.Context, _ event.DeleteEvent, q queue) { all(ctx, q) },
	}
}

// gatewayMatters tells whether pools choose the gateway anew, it announces another family, it begins or ends to serve nothing, or it serves nothing and
// answers for other addresses.
func gatewayMatters(before, after client.Object) bool {
	was, is := before.(*v1alpha1.Gateway), after.(*v1alpha1.Gateway)
	sameFamily := func(a, b v1alpha1.GatewaySilence) bool { return a.Family == b.Family }
	switch {
	case !maps.Equal(was.Labels, is.Labels), !slices.EqualFunc(was.Status.Silent, is.Status.Silent, sameFamily), servesNothing(was) != servesNothing(is):
		return true
	case !servesNothing(is):
		return false
	}
	return !convert.Election(was).View.Equal(convert.Election(is).View) || was.Status.AnnouncedAddresses != is.Status.AnnouncedAddresses
}

// poolMatters tells whether the pool chooses other gateways.
func poolMatters(before, after client.Object) bool {
	return !equality.Semantic.DeepEqual(before.(*v1alpha1.AddressPool).Spec.GatewaySelector, after.(*v1alpha1.AddressPool).Spec.GatewaySelector)
}
