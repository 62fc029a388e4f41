package controller

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestNoFinalizerOfATenantsObjectKeepsTheTenant(t *testing.T) {
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
	require.NoError(t, r.release(t.Context(), "tenant-a", began.Add(time.Second)))
	require.Equal(t, map[string][]string{"more": {theirs}, "web": {ours, theirs}}, left(), "an operator's may be needed, and so is ours of a LoadBalancer")
	require.NoError(t, r.release(t.Context(), "tenant-a", began.Add(releaseAfter)))
	require.Equal(t, map[string][]string{"web": {ours}}, left())
}

func TestOurFinalizerDoesNotKeepAddressesWhoseTenantStays(t *testing.T) {
	scheme := schemeOf(t)
	at := metav1.NewTime(time.Unix(1_800_000_000, 0))
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "gone", Finalizers: []string{v1alpha1.CleanupFinalizer}, DeletionTimestamp: &at}},
		&v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "there", Finalizers: []string{v1alpha1.CleanupFinalizer}}}).Build()
	require.NoError(t, (&tenantReconciler{client: server, reader: server}).clear(t.Context(), "tenant-a"))
	var list v1alpha1.AddressesList
	require.NoError(t, server.List(t.Context(), &list))
	require.Len(t, list.Items, 1)
	require.Equal(t, "there", list.Items[0].Name)
}
