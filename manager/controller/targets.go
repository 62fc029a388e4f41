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

// targetReconciler keeps the fences up to date, has on record which nodes are whose where only that tells, and wakes up LoadBalancers of which
// another target is refused than before.
type targetReconciler struct {
	client  client.Client
	fences  *fences
	changed chan<- event.GenericEvent
	// tenants is asked for those whose endpoints were counted anew; nil for nobody.
	tenants chan<- event.GenericEvent
}

func (r *targetReconciler) setUp(mgr ctrl.Manager) error {
	once := afterBursts(allAtOnce)
	controller := ctrl.NewControllerManagedBy(mgr).Named("targets").
		Watches(&v1alpha1.Tenant{}, once, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Addresses{}, once).
		Watches(&v1alpha1.Gateway{}, once, builder.WithPredicates(addressesDiffer)).
		Watches(&v1alpha1.LoadBalancer{}, once, builder.WithPredicates(ownTargetsDiffer))
	if r.fences.nodes {
		controller = controller.Watches(&corev1.Node{}, once, builder.WithPredicates(addressesDiffer))
	}
	return controller.Complete(r)
}

// addressesDiffer lets through what changes the addresses of a gateway or a Node.
var addressesDiffer = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return !slices.Equal(hostAddresses(e.ObjectOld), hostAddresses(e.ObjectNew))
}}

// ownTargetsDiffer lets through what changes the targets that stand in a LoadBalancer itself. Most LoadBalancers have none, and no change of one
// has all tenants' targets looked at.
var ownTargetsDiffer = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return listsOwn(e.Object) },
	DeleteFunc: func(e event.DeleteEvent) bool { return listsOwn(e.Object) },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() && !sameTargets(e.ObjectOld, e.ObjectNew)
	},
}

func listsOwn(o client.Object) bool { return convert.HasOwnTargets(o.(*v1alpha1.LoadBalancer)) }

func sameTargets(before, after client.Object) bool {
	ownBefore, localBefore := convert.OwnTargets(before.(*v1alpha1.LoadBalancer))
	own, local := convert.OwnTargets(after.(*v1alpha1.LoadBalancer))
	return own == ownBefore && local == localBefore
}

func hostAddresses(o client.Object) []netip.Addr {
	switch host := o.(type) {
	case *v1alpha1.Gateway:
		return hubhosts.Parsed(host.Status.HostAddresses)
	case *corev1.Node:
		return hubhosts.OfNode(host)
	}
	return nil
}

// Reconcile looks at all at once, since whose an address is depends on what others list, and then at the lists of targets for which something differs.
// Tenants take turns at that.
func (r *targetReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if err := r.fences.look(ctx); err != nil {
		return reconcile.Result{}, err
	}
	next, more := r.fences.turn()
	var errs []error
	counted := map[string]bool{}
	for _, key := range next {
		if err := r.judge(ctx, key); err != nil {
			r.fences.again(key)
			errs = append(errs, err)
		}
		counted[key.Namespace] = true
	}
	for namespace := range counted {
		errs = append(errs, r.tell(ctx, namespace))
	}
	result := reconcile.Result{}
	if more {
		result.RequeueAfter = time.Millisecond
	}
	return unlessConflict(ctx, result, errors.Join(errs...))
}

// judge finds out what of a list cannot be used, and has on record what its tenant was the first to list.
func (r *targetReconciler) judge(ctx context.Context, key listKey) error {
	a, endpoints, err := r.read(ctx, key)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read targets of %s: %w", key, err)
	}
	if err != nil {
		return nil // the next look forgets it
	}
	tenant, known := r.fences.tenantOf(key.Namespace)
	var refused string
	var usable int
	var held []netip.Addr
	err = r.fences.with(ctx, func(fence translate.Fence) {
		if known {
			problems, n := translate.Judge(a, tenant, fence)
			refused, usable = fmt.Sprint(key.Name, problems), n
			if len(endpoints) < len(a.List) {
				usable = translate.CountTargets(endpoints, tenant, fence)
			}
		}
		if !key.own {
			held = slices.DeleteFunc(fence.Claims.ToHold(a), func(address netip.Addr) bool { return fence.Hosts[address] != "" })
		}
	})
	if err != nil {
		return err
	}
	if !key.own {
		if err := r.hold(ctx, a, held); err != nil {
			return err
		}
	}
	if !r.fences.judged(key, refused, usable) || !known {
		return nil
	}
	return r.wake(ctx, key)
}

// read returns a list, and the part of it by which endpoints are counted.
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

// hold has on record what an object's tenant was the first to list.
func (r *targetReconciler) hold(ctx context.Context, a translate.Addresses, held []netip.Addr) error {
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

// wake tells of a LoadBalancer, or of all of a namespace, that something else is refused than before.
func (r *targetReconciler) wake(ctx context.Context, key listKey) error {
	of := metav1.ObjectMeta{Namespace: key.Namespace}
	if key.own {
		of.Name = key.Name
	}
	return send(ctx, r.changed, &v1alpha1.LoadBalancer{ObjectMeta: of})
}

// tell asks for the tenant of the namespace if its status says how many endpoints its LoadBalancers have.
func (r *targetReconciler) tell(ctx context.Context, namespace string) error {
	tenant, known := r.fences.tenantOf(namespace)
	if r.tenants == nil || !known || tenant.EndpointsPerLoadBalancer == 0 {
		return nil
	}
	return send(ctx, r.tenants, &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: tenant.Name}})
}

// send tells of an object, and waits until that is heard.
func send(ctx context.Context, to chan<- event.GenericEvent, o client.Object) error {
	select {
	case to <- event.GenericEvent{Object: o}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
