package report

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/api/v1alpha1"
)

// T18: a policy keeps a gateway from selecting itself for AddressPools. A gateway with other labels on its object still writes its status.
func TestAGatewayThatMayNotChangeItsLabelsWritesItsStatus(t *testing.T) {
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	object := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g", Labels: map[string]string{"site": "north"}}}
	refusing := true
	hub := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(object).WithObjects(object).WithInterceptorFuncs(interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.UpdateOption) error {
			if refusing {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "gateways"}, o.GetName(), nil)
			}
			return c.Update(ctx, o, options...)
		},
	}).Build()
	var log strings.Builder
	w := NewWriter(hub, "g", map[string]string{"site": "south"}, nil, slog.New(slog.NewTextHandler(&log, nil)))
	stands := func(frontends int32) *v1alpha1.Gateway {
		require.NoError(t, w.Write(t.Context(), Report{GatewayStatus: v1alpha1.GatewayStatus{Frontends: frontends}, Served: true}))
		var is v1alpha1.Gateway
		require.NoError(t, hub.Get(t.Context(), client.ObjectKeyFromObject(object), &is))
		require.Equal(t, frontends, is.Status.Frontends)
		return &is
	}
	stands(1)
	require.Equal(t, map[string]string{"site": "north"}, stands(2).Labels)
	require.Equal(t, 1, strings.Count(log.String(), "kubectl label"), "it is logged once")

	refusing = false
	require.Equal(t, map[string]string{"site": "south"}, stands(3).Labels)
}
