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

// onAnnouncementChange requests all LoadBalancers if other gateways may announce addresses than before, or none. All other changes of a Gateway
// reconcile only LoadBalancers that wait.
func (r *loadBalancerReconciler) onAnnouncementChange(matters func(before, after client.Object) bool) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	all := func(ctx context.Context, q queue) {
		for _, request := range r.loadBalancersIn(ctx, "") {
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

// announcementChanges reports whether the gateway has other labels, whether it announces other families, whether it begins or ceases to serve nothing, or whether
// it serves nothing and answers for other addresses.
func announcementChanges(before, after client.Object) bool {
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

// selectionChanges reports whether the AddressPool selects other gateways.
func selectionChanges(before, after client.Object) bool {
	return !equality.Semantic.DeepEqual(before.(*v1alpha1.AddressPool).Spec.GatewaySelector, after.(*v1alpha1.AddressPool).Spec.GatewaySelector)
}
