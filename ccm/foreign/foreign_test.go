package foreign

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/meta/testrestmapper"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/api/v1alpha1"
)

var ingresses = schema.GroupKind{Group: "networking.k8s.io", Kind: "Ingress"}

func ingress(name string, finalizers ...string) *networkingv1.Ingress {
	return &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Finalizers: finalizers, Labels: map[string]string{"name": name}}}
}

// tenantCluster returns an API server with these objects. The test defines how it lists.
func tenantCluster(t *testing.T, list func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error, objects ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme)))
	return fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(testrestmapper.TestOnlyStaticRESTMapper(scheme)).WithObjects(objects...).
		WithInterceptorFuncs(interceptor.Funcs{List: list}).Build()
}

func namesOf(found []metav1.PartialObjectMetadata) (out []string) {
	for _, o := range found {
		out = append(out, o.Kind+" "+o.Name)
	}
	return out
}

func TestObjectsWithKubeLBsFinalizerAreFound(t *testing.T) {
	c := tenantCluster(t, nil, ingress("marked", "example.com/other", Finalizer), ingress("also", Finalizer), ingress("unmarked", "example.com/other"), ingress("plain"))
	found, err := Find(t.Context(), c, c.RESTMapper(), ingresses)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"Ingress marked", "Ingress also"}, namesOf(found), "with their kind, so that they can be written")
	found, err = Find(t.Context(), c, c.RESTMapper(), ingresses, client.MatchingLabels{"name": "also"})
	require.NoError(t, err)
	require.Equal(t, []string{"Ingress also"}, namesOf(found))
}

// A cluster may have tens of thousands of Secrets.
func TestObjectsAreReadInPages(t *testing.T) {
	pages := map[string][]string{"": {"a", "b"}, "2": {"c"}, "3": {"d"}}
	next := map[string]string{"": "2", "2": "3"}
	c := tenantCluster(t, func(_ context.Context, _ client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
		var o client.ListOptions
		o.ApplyOptions(options)
		require.EqualValues(t, page, o.Limit)
		into := list.(*metav1.PartialObjectMetadataList)
		into.Items = nil
		for _, name := range pages[o.Continue] {
			into.Items = append(into.Items, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{Finalizer}}})
		}
		into.Continue = next[o.Continue]
		return nil
	})
	found, err := Find(t.Context(), c, c.RESTMapper(), ingresses)
	require.NoError(t, err)
	require.Equal(t, []string{"Ingress a", "Ingress b", "Ingress c", "Ingress d"}, namesOf(found))
}

// Most clusters have no Gateway API.
func TestAMissingKindHasNoObjects(t *testing.T) {
	gateways := schema.GroupKind{Group: "gateway.networking.k8s.io", Kind: "Gateway"}
	c := tenantCluster(t, nil)
	found, err := Find(t.Context(), c, c.RESTMapper(), gateways)
	require.NoError(t, err)
	require.Empty(t, found)

	c = tenantCluster(t, func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
		return &meta.NoKindMatchError{GroupKind: ingresses}
	})
	found, err = Find(t.Context(), c, c.RESTMapper(), ingresses)
	require.NoError(t, err, "its definition was removed after the kinds were read")
	require.Empty(t, found)
}

func TestTheErrorNamesAKindThatMayNotBeRead(t *testing.T) {
	calls := 0
	c := tenantCluster(t, func(_ context.Context, _ client.WithWatch, list client.ObjectList, _ ...client.ListOption) error {
		if calls++; calls == 1 {
			into := list.(*metav1.PartialObjectMetadataList)
			into.Items, into.Continue = []metav1.PartialObjectMetadata{{ObjectMeta: metav1.ObjectMeta{Name: "a", Finalizers: []string{Finalizer}}}}, "2"
			return nil
		}
		return apierrors.NewForbidden(schema.GroupResource{Resource: "ingresses"}, "", errors.New("no such right"))
	})
	found, err := Find(t.Context(), c, c.RESTMapper(), ingresses)
	require.ErrorContains(t, err, "list ingresses.networking.k8s.io: ")
	require.True(t, apierrors.IsForbidden(err))
	require.Equal(t, []string{"Ingress a"}, namesOf(found), "what was read before counts")
}

func TestServicesAndSecretsAreNotAmongTheKinds(t *testing.T) {
	require.NotContains(t, Kinds(), schema.GroupKind{Kind: "Service"}, "the CCM adopts Services itself")
	require.NotContains(t, Kinds(), Secret, "the CCM may read Secrets only if the operator allows it")
	require.NotContains(t, Kinds(), SyncSecret)
	require.Len(t, Kinds(), 7)
	require.Equal(t, "kubelb.k8c.io/cleanup", Finalizer)
	require.Equal(t, "SyncSecret.kubelb.k8c.io", SyncSecret.String())
	require.Equal(t, v1alpha1.CleanupFinalizer, Finalizer)
}
