package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

const (
	// releaseAfter is how long another's finalizer has to do what it is there for, once its object is being deleted with the Tenant.
	releaseAfter = time.Minute
	releaseEvery = 2 * time.Second
)

// release removes what would keep the namespace of a Tenant that goes: finalizers of the kinds that a tenant may write. It asks the API server
// itself, since it writes what it reads.
//
// Ours go at once, but for that of LoadBalancers, whose addresses gateways have to let go of first. Another's is heeded for a while: a tenant
// cannot write one where the policy is installed, so that it may be an operator's.
func (r *tenantReconciler) release(ctx context.Context, namespace string, now time.Time) error {
	do := func(list client.ObjectList) error { return r.releaseEach(ctx, list, now) }
	for _, anew := range []func() client.ObjectList{func() client.ObjectList { return &v1alpha1.LoadBalancerList{} }, func() client.ObjectList { return &v1alpha1.AddressesList{} }} {
		if err := eachPage(ctx, r.reader, anew, func() {}, do, client.InNamespace(namespace)); err != nil {
			return fmt.Errorf("look for finalizers in namespace %s: %w", namespace, err)
		}
	}
	return nil
}

func (r *tenantReconciler) releaseEach(ctx context.Context, list client.ObjectList, now time.Time) error {
	for _, o := range objectsOf(list) {
		left := heeded(o, now)
		if len(left) == len(o.GetFinalizers()) {
			continue
		}
		before := o.DeepCopyObject().(client.Object)
		o.SetFinalizers(left)
		if err := patch(ctx, r.client, o, before); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove finalizers of %T %s: %w", o, client.ObjectKeyFromObject(o), err)
		}
	}
	return nil
}

// heeded are the finalizers of the object that may stay yet.
func heeded(o client.Object, now time.Time) []string {
	deleted := o.GetDeletionTimestamp()
	return slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool {
		if _, is := o.(*v1alpha1.LoadBalancer); is && f == v1alpha1.CleanupFinalizer {
			return false
		}
		return isOurs(f) || deleted != nil && now.Sub(deleted.Time) >= releaseAfter
	})
}

func objectsOf(list client.ObjectList) (out []client.Object) {
	switch l := list.(type) {
	case *v1alpha1.LoadBalancerList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *v1alpha1.AddressesList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	}
	return out
}

// clear removes our own finalizer from Addresses that are being deleted while their Tenant stays: it means nothing there, and only a tenant
// without the policy can have written it.
func (r *tenantReconciler) clear(ctx context.Context, namespace string) error {
	var list v1alpha1.AddressesList
	if err := r.client.List(ctx, &list, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for i := range list.Items {
		key := client.ObjectKeyFromObject(&list.Items[i])
		if list.Items[i].DeletionTimestamp == nil || !slices.Contains(list.Items[i].Finalizers, v1alpha1.CleanupFinalizer) {
			continue
		}
		var a v1alpha1.Addresses
		if err := r.reader.Get(ctx, key, &a); err != nil {
			return client.IgnoreNotFound(err)
		}
		before := a.DeepCopy()
		a.Finalizers = slices.DeleteFunc(a.Finalizers, func(f string) bool { return f == v1alpha1.CleanupFinalizer })
		if err := patch(ctx, r.client, &a, before); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove the finalizer of Addresses %s: %w", key, err)
		}
	}
	return nil
}
