package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

func conflict() error {
	return apierrors.NewConflict(schema.GroupResource{Resource: "loadbalancers"}, "web", errors.New("changed"))
}

// busy is an API server where another program writes between each read and write.
func busy(server client.WithWatch) client.Client {
	return interceptor.NewClient(server, interceptor.Funcs{
		Update: func(context.Context, client.WithWatch, client.Object, ...client.UpdateOption) error {
			return conflict()
		},
		Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
			return conflict()
		},
		SubResourceUpdate: func(context.Context, client.Client, string, client.Object, ...client.SubResourceUpdateOption) error {
			return conflict()
		}})
}

func TestAConflictIsNoErrorOfAController(t *testing.T) {
	marked := recorded("marked", 0)
	marked.Finalizers = []string{v1alpha1.CleanupFinalizer}
	kept := tenantA()
	kept.Name, kept.Finalizers = "kept", []string{v1alpha1.CleanupFinalizer}
	rivals := []client.Object{nodes("old", "198.51.100.11"), nodes("young", "198.51.100.11")}
	for _, name := range []string{"old", "young"} {
		rivals = append(rivals, &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"198.51.100.0/24"}}})
	}
	objects := append(rivals, public(), marked, recorded("new", 0), kept, tenantA())
	c := busy(fake.NewClientBuilder().WithScheme(schemeOf(t, corev1.AddToScheme, coordinationv1.AddToScheme, rbacv1.AddToScheme)).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.LoadBalancer{}, &v1alpha1.Tenant{}, &v1alpha1.AddressPool{}, &v1alpha1.Addresses{}).Build())
	lbs := reconcilerOf(t, c)
	tenants := &tenantReconciler{client: c, reader: c, addresses: lbs.addresses, filter: lbs.filter}
	numbers, err := newMetrics(nil)
	require.NoError(t, err)
	pools := &poolReconciler{client: c, addresses: lbs.addresses, changed: make(chan event.GenericEvent, 1), metrics: numbers}
	ofTenant := func(name string) reconcile.Request {
		return reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "tenant-a", Name: name}}
	}
	for what, do := range map[string]func(context.Context) (reconcile.Result, error){
		"the finalizer of a LoadBalancer": func(ctx context.Context) (reconcile.Result, error) { return lbs.Reconcile(ctx, ofTenant("new")) },
		"the status of a LoadBalancer":    func(ctx context.Context) (reconcile.Result, error) { return lbs.Reconcile(ctx, ofTenant("marked")) },
		"the finalizer of a Tenant":       func(ctx context.Context) (reconcile.Result, error) { return tenants.Reconcile(ctx, requestFor("a")) },
		"the status of a Tenant":          func(ctx context.Context) (reconcile.Result, error) { return tenants.Reconcile(ctx, requestFor("kept")) },
		"the status of a pool":            func(ctx context.Context) (reconcile.Result, error) { return pools.Reconcile(ctx, reconcile.Request{}) },
		"the status of Addresses": func(ctx context.Context) (reconcile.Result, error) {
			r := &targetReconciler{client: c, filter: lbs.filter, changed: make(chan event.GenericEvent, 10)}
			return r.Reconcile(ctx, reconcile.Request{})
		},
	} {
		t.Run(what, func(t *testing.T) {
			var out bytes.Buffer
			ctx := log.IntoContext(t.Context(), logr.FromSlogHandler(slog.NewTextHandler(&out, nil)))
			result, err := do(ctx)
			require.NoError(t, err)
			require.Equal(t, conflictRetry, result.RequeueAfter)
			require.Empty(t, out.String())
		})
	}
}

func TestAnErrorTogetherWithAConflictIsAnError(t *testing.T) {
	full := errors.New("etcd is full")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{full, false},
		{fmt.Errorf("write the status: %w", conflict()), true},
		{errors.Join(nil, conflict()), true},
		{errors.Join(conflict(), full), false},
		{errors.Join(full, conflict()), false},
	} {
		require.Equal(t, c.want, isConflict(c.err), "%v", c.err)
	}
}
