package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/hubhosts"
)

// targetReconciler refreshes the filter of targets, records in status.held which tenant owns a node if several list it, and reconciles LoadBalancers whose
// refused targets have changed.
type targetReconciler struct {
	client  client.Client
	filter  *targetFilter
	changed chan<- event.GenericEvent
	// tenants gets the Tenants whose endpoints were counted again. It may be nil.
	tenants chan<- event.GenericEvent
}

func (r *targetReconciler) setUp(mgr ctrl.Manager) error {
	once := debounced(sameRequest)
	controller := ctrl.NewControllerManagedBy(mgr).Named("targets").
		Watches(&v1alpha1.Tenant{}, once, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Addresses{}, once).
		Watches(&v1alpha1.Gateway{}, once, builder.WithPredicates(addressesDiffer)).
		Watches(&v1alpha1.LoadBalancer{}, once, builder.WithPredicates(ownTargetsDiffer))
	if r.filter.nodes {
		controller = controller.Watches(&corev1.Node{}, once, builder.WithPredicates(addressesDiffer))
	}
	return controller.Complete(r)
}

// addressesDiffer passes changes of the addresses of a gateway or a Node.
var addressesDiffer = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return !slices.Equal(hostAddresses(e.ObjectOld), hostAddresses(e.ObjectNew))
}}

// ownTargetsDiffer passes changes of the targets in a LoadBalancer itself. Most LoadBalancers have none, and their changes cause no evaluation of
// targets.
var ownTargetsDiffer = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return hasOwnTargets(e.Object) },
	DeleteFunc: func(e event.DeleteEvent) bool { return hasOwnTargets(e.Object) },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() && !sameTargets(e.ObjectOld, e.ObjectNew)
	},
}

func hasOwnTargets(o client.Object) bool { return convert.HasOwnTargets(o.(*v1alpha1.LoadBalancer)) }

func sameTargets(before, after client.Object) bool {
	ownBefore, localBefore := convert.OwnTargets(before.(*v1alpha1.LoadBalancer))
	own, local := convert.OwnTargets(after.(*v1alpha1.LoadBalancer))
	return own == ownBefore && local == localBefore
}

func hostAddresses(o client.Object) []netip.Addr {
	switch host := o.(type) {
	case *v1alpha1.Gateway:
		return hubhosts.ParseAddresses(host.Status.HostAddresses)
	case *corev1.Node:
		return hubhosts.NodeAddresses(host)
	}
	return nil
}

// Reconcile refreshes the filter with all objects, since the owner of an address depends on the lists of all tenants. Then it evaluates the queued lists.
// Tenants take turns.
func (r *targetReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if err := r.filter.refresh(ctx); err != nil {
		return reconcile.Result{}, err
	}
	next, more := r.filter.nextLists()
	var errs []error
	counted := map[string]bool{}
	for _, key := range next {
		if err := r.evaluate(ctx, key); err != nil {
			r.filter.requeue(key)
			errs = append(errs, err)
		}
		counted[key.Namespace] = true
	}
	for namespace := range counted {
		errs = append(errs, r.enqueueTenant(ctx, namespace))
	}
	result := reconcile.Result{}
	if more {
		result.RequeueAfter = time.Millisecond
	}
	return retryConflicts(ctx, result, errors.Join(errs...))
}

// evaluate finds the refused targets of a list, and records the addresses that its tenant was the first to list.
func (r *targetReconciler) evaluate(ctx context.Context, key listKey) error {
	a, endpoints, err := r.read(ctx, key)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read targets of %s: %w", key, err)
	}
	if err != nil {
		return nil // the next refresh removes the list
	}
	tenant, known := r.filter.tenantOf(key.Namespace)
	var refused string
	var usable int
	var held []netip.Addr
	err = r.filter.with(ctx, func(filter translate.TargetFilter) {
		if known {
			problems, n := translate.CheckAndCountAddresses(a, tenant, filter)
			refused, usable = fmt.Sprint(key.Name, problems), n
			if len(endpoints) < len(a.List) {
				usable = translate.CountTargets(endpoints, tenant, filter)
			}
		}
		if !key.own {
			held = slices.DeleteFunc(filter.NodeOwners.AddressesToHold(a), func(address netip.Addr) bool { return filter.Hosts[address] != "" })
		}
	})
	if err != nil {
		return err
	}
	if !key.own {
		if err := r.recordHeld(ctx, a, held); err != nil {
			return err
		}
	}
	if !r.filter.setResult(key, refused, usable) || !known {
		return nil
	}
	return r.enqueueLoadBalancers(ctx, key)
}

// read returns a list, and the part of it that counts as endpoints.
func (r *targetReconciler) read(ctx context.Context, key listKey) (translate.Addresses, []translate.Address, error) {
	if key.own {
		var lb v1alpha1.LoadBalancer
		if err := r.client.Get(ctx, key.ObjectKey, &lb, client.UnsafeDisableDeepCopy); err != nil {
			return translate.Addresses{}, nil, err
		}
		own, local := convert.OwnTargets(&lb)
		addresses := own.Unpack()
		return translate.Addresses{ObjectName: model.ObjectName(key.ObjectKey), List: slices.Concat(addresses, local.Unpack())}, addresses, nil
	}
	var object v1alpha1.Addresses
	if err := r.client.Get(ctx, key.ObjectKey, &object, client.UnsafeDisableDeepCopy); err != nil {
		return translate.Addresses{}, nil, err
	}
	a := convert.Addresses(&object)
	return a, a.List, nil
}

// recordHeld writes the addresses that the tenant was the first to list into status.held.
func (r *targetReconciler) recordHeld(ctx context.Context, a translate.Addresses, held []netip.Addr) error {
	if slices.Equal(a.Held, held) {
		return nil
	}
	var object v1alpha1.Addresses
	if err := r.client.Get(ctx, client.ObjectKey{Namespace: a.Namespace, Name: a.Name}, &object); err != nil {
		return client.IgnoreNotFound(err)
	}
	object.Status.Held = nil
	for _, address := range held {
		object.Status.Held = append(object.Status.Held, address.String())
	}
	return client.IgnoreNotFound(r.client.Status().Update(ctx, &object))
}

// enqueueLoadBalancers enqueues the LoadBalancer with the list, or all of the namespace for a list of Addresses.
func (r *targetReconciler) enqueueLoadBalancers(ctx context.Context, key listKey) error {
	of := metav1.ObjectMeta{Namespace: key.Namespace}
	if key.own {
		of.Name = key.Name
	}
	return send(ctx, r.changed, &v1alpha1.LoadBalancer{ObjectMeta: of})
}

// enqueueTenant enqueues the Tenant of the namespace if its status has the number of endpoints.
func (r *targetReconciler) enqueueTenant(ctx context.Context, namespace string) error {
	tenant, known := r.filter.tenantOf(namespace)
	if r.tenants == nil || !known || tenant.EndpointsPerLoadBalancer == 0 {
		return nil
	}
	return send(ctx, r.tenants, &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: tenant.Name}})
}

// send sends an event for an object, and waits until it is received.
func send(ctx context.Context, to chan<- event.GenericEvent, o client.Object) error {
	select {
	case to <- event.GenericEvent{Object: o}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
