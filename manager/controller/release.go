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
	// releaseAfter is how long finalizers of other programs stay on an object that is being deleted with its Tenant.
	releaseAfter = time.Minute
	releaseEvery = 2 * time.Second
)

// releaseFinalizers removes finalizers that would keep the namespace of a deleted Tenant, from all objects that a tenant may write. It reads from the API
// server, without the cache, since it writes these objects.
//
// It removes our finalizers at once, except that of LoadBalancers: gateways have to withdraw their addresses first. Finalizers of other programs stay for
// releaseAfter: with the admission policies a tenant cannot write any, so they may be an operator's.
func (r *tenantReconciler) releaseFinalizers(ctx context.Context, namespace string, now time.Time) error {
	do := func(list client.ObjectList) error { return r.releaseInPage(ctx, list, now) }
	for _, newList := range []func() client.ObjectList{func() client.ObjectList { return &v1alpha1.LoadBalancerList{} }, func() client.ObjectList { return &v1alpha1.AddressesList{} }} {
		if err := eachPage(ctx, r.reader, newList, func() {}, do, client.InNamespace(namespace)); err != nil {
			return fmt.Errorf("remove finalizers in namespace %s: %w", namespace, err)
		}
	}
	return nil
}

func (r *tenantReconciler) releaseInPage(ctx context.Context, list client.ObjectList, now time.Time) error {
	for _, o := range objectsOf(list) {
		left := keptFinalizers(o, now)
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

// keptFinalizers returns the finalizers of the object that may stay for now.
func keptFinalizers(o client.Object, now time.Time) []string {
	deleted := o.GetDeletionTimestamp()
	return slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool {
		if _, is := o.(*v1alpha1.LoadBalancer); is && f == v1alpha1.CleanupFinalizer {
			return false
		}
		return isOwnFinalizer(f) || deleted != nil && now.Sub(deleted.Time) >= releaseAfter
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

// clearAddresses removes our own finalizer from Addresses that are being deleted while their Tenant stays. It has no meaning there, and only a tenant
// without the admission policies can write it.
func (r *tenantReconciler) clearAddresses(ctx context.Context, namespace string) error {
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
