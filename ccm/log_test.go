package ccm

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// logged returns a reconciler of one Service, and its log at level info.
func logged(t *testing.T, funcs interceptor.Funcs) (*serviceReconciler, context.Context, *bytes.Buffer, *corev1.Service) {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "1"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(service).WithStatusSubresource(service).WithInterceptorFuncs(funcs).Build()
	out := &bytes.Buffer{}
	ctx := log.IntoContext(t.Context(), logr.FromSlogHandler(slog.NewTextHandler(out, nil)))
	return &serviceReconciler{tenant: c, hub: c, events: events.NewFakeRecorder(10), nodes: newNodesProblem(), config: Config{HubNamespace: "tenant-a", NodeAddressType: "InternalIP"}}, ctx, out, service
}

func TestTheLogNamesAServiceThatIsServedAndOneThatIsNot(t *testing.T) {
	r, ctx, out, service := logged(t, interceptor.Funcs{})
	say := func(status metav1.ConditionStatus, reason, message string, addresses ...string) string {
		out.Reset()
		require.NoError(t, r.tenant.Get(ctx, client.ObjectKeyFromObject(service), service))
		var lb corev1.LoadBalancerStatus
		for _, a := range addresses {
			lb.Ingress = append(lb.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
		require.NoError(t, r.publish(ctx, service, &lb, metav1.Condition{Type: conditionReady, Status: status, Reason: reason, Message: message}, nil))
		return out.String()
	}
	line := say(metav1.ConditionTrue, "Ready", "served", "203.0.113.1", "2001:db8::1")
	require.Contains(t, line, "level=INFO")
	require.Contains(t, line, `msg="the Service is served" service=shop/web addresses="[203.0.113.1 2001:db8::1]" reason=Ready`)
	require.Equal(t, 1, strings.Count(line, "\n"))
	require.Empty(t, say(metav1.ConditionTrue, "Ready", "served", "203.0.113.1", "2001:db8::1"), "nothing has changed")
	line = say(metav1.ConditionFalse, "PoolExhausted", "no address is free")
	require.Contains(t, line, "level=WARN")
	require.Contains(t, line, `msg="the Service is not served" service=shop/web`)
	require.Contains(t, line, `message="no address is free"`)
	require.Contains(t, say(metav1.ConditionFalse, "WaitingForGateway", "wait"), "level=INFO")
}

func TestAConflictIsNoError(t *testing.T) {
	r, ctx, out, service := logged(t, interceptor.Funcs{Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
		return apierrors.NewConflict(schema.GroupResource{Resource: "services"}, "web", errors.New("changed"))
	}})
	result, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(service)})
	require.NoError(t, err)
	require.Equal(t, conflictRetry, result.RequeueAfter)
	require.Empty(t, out.String())
}
