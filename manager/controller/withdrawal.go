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

// release confirms an allocation that gives something back, once gateways have withdrawn it: then other LoadBalancers may get it.
func (r *loadBalancerReconciler) release(ctx context.Context, lb *v1alpha1.LoadBalancer, a allocation) (reconcile.Result, error) {
	r.waiting.setForGateway(lb, true)
	holding, err := r.mayBeServed(ctx, lb)
	if err != nil {
		return reconcile.Result{}, err
	}
	if left := withdrawalLimit - time.Since(a.since); holding && left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	r.addresses.confirm(client.ObjectKeyFromObject(lb).String(), a)
	r.requeueWaiting()
	return reconcile.Result{}, nil
}

// withdrawalLimit is how long to wait for gateways that do not report the withdrawal of an address.
const withdrawalLimit = 10 * time.Second

// isOwnFinalizer reports whether the finalizer is of this manager, or of KubeLB's, which also uses cleanup-hostname and cleanup-envoy-proxy.
func isOwnFinalizer(finalizer string) bool {
	return strings.HasPrefix(finalizer, v1alpha1.GroupVersion.Group+"/")
}

// cleanUp releases the addresses of a deleted LoadBalancer once gateways have withdrawn them, and then removes our finalizers.
func (r *loadBalancerReconciler) cleanUp(ctx context.Context, lb *v1alpha1.LoadBalancer) (reconcile.Result, error) {
	key := client.ObjectKeyFromObject(lb)
	if !slices.ContainsFunc(lb.Finalizers, isOwnFinalizer) {
		return reconcile.Result{}, nil
	}
	r.waiting.setForGateway(lb, true)
	holding, err := r.mayBeServed(ctx, lb)
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
	if err := r.addresses.reserve(ctx, r.client, lb, tenant != nil && tenant.Deleting, time.Now()); err != nil {
		return reconcile.Result{}, err
	}
	err = r.patchMetadata(ctx, key, func(lb *v1alpha1.LoadBalancer) bool {
		count := len(lb.Finalizers)
		lb.Finalizers = slices.DeleteFunc(lb.Finalizers, isOwnFinalizer)
		return len(lb.Finalizers) < count
	})
	if err != nil {
		return reconcile.Result{}, err
	}
	r.remove(key)
	r.requeueWaiting()
	return reconcile.Result{}, nil
}

// mayBeServed reports whether a gateway may still serve a former version of the LoadBalancer.
func (r *loadBalancerReconciler) mayBeServed(ctx context.Context, lb *v1alpha1.LoadBalancer) (bool, error) {
	var gateways v1alpha1.GatewayList
	if err := r.client.List(ctx, &gateways); err != nil {
		return false, err
	}
	behind := func(g v1alpha1.Gateway) bool { return !applied(&g, lb) }
	if !slices.ContainsFunc(gateways.Items, behind) {
		return false, nil
	}
	// Gateways whose Leases have expired answer for no address any more.
	gone, err := goneGateways(ctx, r.reader, r.namespace)
	return slices.ContainsFunc(gateways.Items, func(g v1alpha1.Gateway) bool { return !gone[g.Name] && behind(g) }), err
}

// goneFor is how long after the expiry of its Lease a gateway counts as gone. It allows for differences between the clocks of hosts.
const goneFor = time.Minute

// goneGateways returns the gateways whose Leases have expired. It reads from the API server, without the cache: Leases change too often to be watched for this.
func goneGateways(ctx context.Context, reader client.Reader, namespace string) (map[string]bool, error) {
	var leases coordinationv1.LeaseList
	if err := reader.List(ctx, &leases, client.InNamespace(namespace), client.HasLabels{membership.Label}); err != nil {
		return nil, fmt.Errorf("read the gateways' Leases: %w", err)
	}
	gone := map[string]bool{}
	for _, lease := range leases.Items {
		if ago, _, known := membership.LastRenewal(&lease, time.Now()); known && ago > membership.MaxRenewalAge(&lease, goneFor) {
			gone[lease.Name] = true
		}
	}
	return gone, nil
}

// remove removes the state of a LoadBalancer that does not exist any more.
func (r *loadBalancerReconciler) remove(key client.ObjectKey) {
	r.addresses.release(key.String())
	r.waiting.setForGateway(&v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}, false)
	r.waiting.setForAddress(key, false)
	r.throttle.remove(key)
	r.faults.Remove(key)
}

// requeueWaiting reconciles the LoadBalancers that wait for an address.
func (r *loadBalancerReconciler) requeueWaiting() {
	select {
	case r.poolsChanged <- event.GenericEvent{Object: &v1alpha1.AddressPool{}}:
	default: // an event is waiting already
	}
}
