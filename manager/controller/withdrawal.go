package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/membership"
)

// letGo ends what is on record no more: others get it when gateways have let go of it, too.
func (r *loadBalancerReconciler) letGo(ctx context.Context, lb *v1alpha1.LoadBalancer, a allocation) (reconcile.Result, error) {
	r.waiting.forGateway(lb, true)
	holding, err := r.held(ctx, lb)
	if err != nil {
		return reconcile.Result{}, err
	}
	if left := withdrawalLimit - time.Since(a.since); holding && left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	r.addresses.settle(client.ObjectKeyFromObject(lb).String(), a)
	r.freed()
	return reconcile.Result{}, nil
}

// withdrawalLimit is how long an address is kept for gateways that do not say that they let go of it.
const withdrawalLimit = 10 * time.Second

// isOurs: the finalizer is one of this manager's, or of KubeLB's, which this one has replaced: it has cleanup-hostname and cleanup-envoy-proxy besides.
func isOurs(finalizer string) bool {
	return strings.HasPrefix(finalizer, v1alpha1.GroupVersion.Group+"/")
}

// cleanUp frees the address when gateways have let go of it, and then the object.
func (r *loadBalancerReconciler) cleanUp(ctx context.Context, lb *v1alpha1.LoadBalancer) (reconcile.Result, error) {
	key := client.ObjectKeyFromObject(lb)
	if !slices.ContainsFunc(lb.Finalizers, isOurs) {
		return reconcile.Result{}, nil
	}
	r.waiting.forGateway(lb, true)
	holding, err := r.held(ctx, lb)
	if err != nil {
		return reconcile.Result{}, err
	}
	if left := withdrawalLimit - time.Since(lb.DeletionTimestamp.Time); holding && len(lb.Status.Addresses) > 0 && left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	tenant, err := r.tenantOf(ctx, lb.Namespace)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := r.addresses.reserve(ctx, r.client, lb, tenant != nil && tenant.Leaving, time.Now()); err != nil {
		return reconcile.Result{}, err
	}
	err = r.rewrite(ctx, key, func(lb *v1alpha1.LoadBalancer) bool {
		count := len(lb.Finalizers)
		lb.Finalizers = slices.DeleteFunc(lb.Finalizers, isOurs)
		return len(lb.Finalizers) < count
	})
	if err != nil {
		return reconcile.Result{}, err
	}
	r.forget(key)
	r.freed()
	return reconcile.Result{}, nil
}

// held tells whether a gateway may still serve what the LoadBalancer was before its present version.
func (r *loadBalancerReconciler) held(ctx context.Context, lb *v1alpha1.LoadBalancer) (bool, error) {
	var gateways v1alpha1.GatewayList
	if err := r.client.List(ctx, &gateways); err != nil {
		return false, err
	}
	behind := func(g v1alpha1.Gateway) bool { return !applied(&g, lb) }
	if !slices.ContainsFunc(gateways.Items, behind) {
		return false, nil
	}
	// Those that answer for no address any more need not be waited for.
	gone, err := goneGateways(ctx, r.reader, r.namespace)
	return slices.ContainsFunc(gateways.Items, func(g v1alpha1.Gateway) bool { return !gone[g.Name] && behind(g) }), err
}

// goneFor is for how long a gateway's Lease is over of which that is sure, whatever the clocks of hosts say.
const goneFor = time.Minute

// goneGateways are those whose Leases are over. It asks the API server itself: Leases change too often to be watched for this.
func goneGateways(ctx context.Context, reader client.Reader, namespace string) (map[string]bool, error) {
	var leases coordinationv1.LeaseList
	if err := reader.List(ctx, &leases, client.InNamespace(namespace), client.HasLabels{membership.Label}); err != nil {
		return nil, fmt.Errorf("read the gateways' Leases: %w", err)
	}
	gone := map[string]bool{}
	for _, lease := range leases.Items {
		if ago, _, known := membership.LastHeard(&lease, time.Now()); known && ago > membership.Silence(&lease, goneFor) {
			gone[lease.Name] = true
		}
	}
	return gone, nil
}

// forget drops what is known about a LoadBalancer that is gone.
func (r *loadBalancerReconciler) forget(key client.ObjectKey) {
	r.addresses.release(key.String())
	r.waiting.forGateway(&v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}, false)
	r.waiting.forAddress(key, false)
	r.pace.forget(key)
	r.faults.Remove(key)
}

// freed wakes up those that wait for an address.
func (r *loadBalancerReconciler) freed() {
	select {
	case r.poolsChanged <- event.GenericEvent{Object: &v1alpha1.AddressPool{}}:
	default: // told already, and not yet heard
	}
}
