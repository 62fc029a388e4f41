package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestWhatIsThereWithoutTheLabelOfTheCacheIsTakenOver(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
		require.NoError(t, add(scheme))
	}
	tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "uid"}}
	there := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tenant-a", Labels: map[string]string{"team": "shop"}}}
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(tenant, there).Build()
	// A cache knows only of what bears the label.
	cached := fake.NewClientBuilder().WithScheme(scheme).Build()
	r := &tenantReconciler{client: uncached{server, cached}, reader: server}
	for range 2 {
		_, err := r.ensure(t.Context(), tenant)
		require.NoError(t, err)
	}
	var namespace corev1.Namespace
	require.NoError(t, server.Get(t.Context(), client.ObjectKey{Name: "tenant-a"}, &namespace))
	require.Equal(t, map[string]string{"team": "shop", v1alpha1.LabelManagedBy: v1alpha1.ManagedByKubeLB}, namespace.Labels)
	require.True(t, metav1.IsControlledBy(&namespace, tenant))
	for _, o := range []client.Object{&corev1.ServiceAccount{}, &corev1.Secret{}, &rbacv1.Role{}, &rbacv1.RoleBinding{}} {
		require.NoError(t, server.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, o))
		require.Equal(t, v1alpha1.ManagedByKubeLB, o.GetLabels()[v1alpha1.LabelManagedBy], "%T", o)
	}
}
