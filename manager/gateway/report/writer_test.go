package report

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
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

// A new process needs up to half a minute to see a conflict or a refused heartbeat again. Until then the status must not say that there is none.
func TestANewProcessKeepsTheFaultsOfTheSegmentUntilItWouldHaveSeenThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scheme := runtime.NewScheme()
		require.NoError(t, v1alpha1.AddToScheme(scheme))
		object := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}}
		object.Status.Conflicts = []v1alpha1.AddressConflict{{Address: "203.0.113.1", MAC: "02:00:00:00:00:01"}}
		object.Status.Conditions = []metav1.Condition{
			{Type: v1alpha1.ConditionHeartbeatsRefused, Status: metav1.ConditionTrue, Reason: "NotBelieved", Message: "gateway g2: its clock is wrong"},
			{Type: v1alpha1.ConditionBackendBusy, Status: metav1.ConditionTrue, Reason: "Slow"}}
		hub := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(object).WithObjects(object).Build()
		w := NewWriter(hub, "g", nil, nil, slog.New(slog.DiscardHandler))
		write := func(served bool, conflicts ...v1alpha1.AddressConflict) v1alpha1.GatewayStatus {
			require.NoError(t, w.Write(t.Context(), Report{Served: served, GatewayStatus: v1alpha1.GatewayStatus{Conflicts: conflicts}}))
			var is v1alpha1.Gateway
			require.NoError(t, hub.Get(t.Context(), client.ObjectKeyFromObject(object), &is))
			return is.Status
		}

		time.Sleep(time.Hour)
		is := write(false)
		require.Equal(t, object.Status.Conflicts, is.Conflicts, "it does not serve yet, so it has seen nothing")
		require.True(t, meta.IsStatusConditionTrue(is.Conditions, v1alpha1.ConditionHeartbeatsRefused))
		require.Contains(t, meta.FindStatusCondition(is.Conditions, v1alpha1.ConditionAddressConflict).Message, "203.0.113.1 by 02:00:00:00:00:01")
		require.Nil(t, meta.FindStatusCondition(is.Conditions, v1alpha1.ConditionBackendBusy), "this process knows its own plugin")

		seen := v1alpha1.AddressConflict{Address: "203.0.113.1", MAC: "02:00:00:00:00:02"}
		is = write(true, seen)
		require.Equal(t, []v1alpha1.AddressConflict{seen}, is.Conflicts, "what it sees itself is newer")
		time.Sleep(segmentKnownAfter - time.Second)
		require.Equal(t, []v1alpha1.AddressConflict{seen}, write(true).Conflicts)

		time.Sleep(time.Second)
		is = write(true)
		require.Empty(t, is.Conflicts)
		require.Empty(t, is.Conditions)
	})
}
