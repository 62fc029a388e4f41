package controller

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestFinalizersOfATenantsObjectsDoNotBlockItsDeletion(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	going := func(o client.Object, name string, finalizers ...string) client.Object {
		at := metav1.NewTime(began)
		o.SetNamespace("tenant-a")
		o.SetName(name)
		o.SetFinalizers(finalizers)
		o.SetDeletionTimestamp(&at)
		return o
	}
	const ours, theirs = v1alpha1.CleanupFinalizer, "example.com/for-ever"
	scheme := schemeOf(t)
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		going(&v1alpha1.Addresses{}, "default", ours, "kubelb.k8c.io/cleanup-hostname"), going(&v1alpha1.Addresses{}, "more", ours, theirs),
		going(&v1alpha1.LoadBalancer{}, "web", ours, theirs)).Build()
	r := &tenantReconciler{client: server, reader: server}
	left := func() map[string][]string {
		out := map[string][]string{}
		for _, list := range []client.ObjectList{&v1alpha1.LoadBalancerList{}, &v1alpha1.AddressesList{}} {
			require.NoError(t, server.List(t.Context(), list))
			for _, o := range objectsOf(list) {
				out[o.GetName()] = o.GetFinalizers()
			}
		}
		return out
	}
	require.NoError(t, r.releaseFinalizers(t.Context(), "tenant-a", began.Add(time.Second)))
	require.Equal(t, map[string][]string{"more": {theirs}, "web": {ours, theirs}}, left(), "an operator's may be needed, and so is ours of a LoadBalancer")
	require.NoError(t, r.releaseFinalizers(t.Context(), "tenant-a", began.Add(releaseAfter)))
	require.Equal(t, map[string][]string{"web": {ours}}, left())
}

func TestOurFinalizerDoesNotBlockTheDeletionOfAddresses(t *testing.T) {
	scheme := schemeOf(t)
	at := metav1.NewTime(time.Unix(1_800_000_000, 0))
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "gone", Finalizers: []string{v1alpha1.CleanupFinalizer}, DeletionTimestamp: &at}},
		&v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "there", Finalizers: []string{v1alpha1.CleanupFinalizer}}}).Build()
	require.NoError(t, (&tenantReconciler{client: server, reader: server}).clearAddresses(t.Context(), "tenant-a"))
	var list v1alpha1.AddressesList
	require.NoError(t, server.List(t.Context(), &list))
	require.Len(t, list.Items, 1)
	require.Equal(t, "there", list.Items[0].Name)
}

// The Tenant has the reason why its namespace is not deleted.
func TestTheConditionOfADeletedTenantSaysWhatBlocksIt(t *testing.T) {
	deleted := metav1.NewTime(time.Unix(1_800_000_000, 0))
	tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a", DeletionTimestamp: &deleted, Finalizers: []string{v1alpha1.CleanupFinalizer}}}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tenant-a", DeletionTimestamp: &deleted, Finalizers: []string{"kubernetes"}, Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByKubeLB}},
		Status: corev1.NamespaceStatus{Conditions: []corev1.NamespaceCondition{{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionTrue, Message: "Some resources are remaining: secrets. has 1 resource instances"},
			{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Message: "All resources successfully discovered"}}}}
	c := fake.NewClientBuilder().WithScheme(schemeOf(t, corev1.AddToScheme, coordinationv1.AddToScheme)).WithStatusSubresource(&v1alpha1.Tenant{}).WithObjects(public(), tenant, namespace).Build()
	refused := false
	server := interceptor.NewClient(c, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
		if _, is := list.(*v1alpha1.AddressesList); is && refused {
			return errors.New("etcd is full")
		}
		return c.List(ctx, list, options...)
	}})
	r := &tenantReconciler{client: server, reader: server, addresses: &addressAllocator{reader: server}, filter: &targetFilter{client: server}}
	message := func() string {
		_, _ = r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "a"}})
		var is v1alpha1.Tenant
		require.NoError(t, c.Get(t.Context(), client.ObjectKey{Name: "a"}, &is))
		return meta.FindStatusCondition(is.Status.Conditions, v1alpha1.ConditionReady).Message
	}
	require.Equal(t, "namespace tenant-a is being deleted; Some resources are remaining: secrets. has 1 resource instances", message())
	refused = true
	require.Contains(t, message(), "the Tenant cannot be deleted yet: remove finalizers in namespace tenant-a: etcd is full")
}
