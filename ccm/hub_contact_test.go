package ccm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// After an outage of an hour, the last report that a Service is served is out of date.
func TestReadyIsUnknownWhileTheManagementClusterDoesNotAnswer(t *testing.T) {
	web := served("web", nil)
	tenant := clusterOf(t, web)
	lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "uid-of-web",
		Labels: map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: "web"}}}
	hub := clusterOf(t, lb)
	r, recorder := reconcilerOf(t, tenant, hub)
	said := []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "served"}}
	is := func() metav1.Condition {
		t.Helper()
		require.NoError(t, hub.Get(t.Context(), client.ObjectKeyFromObject(lb), lb))
		lb.Status.Conditions, lb.Status.LoadBalancer = said, web.Status.LoadBalancer
		require.NoError(t, hub.Update(t.Context(), lb))
		_, err := r.ensure(t.Context(), get(t, tenant, web))
		require.NoError(t, err)
		service := get(t, tenant, web)
		require.Len(t, service.Status.LoadBalancer.Ingress, 1)
		return *meta.FindStatusCondition(service.Status.Conditions, conditionReady)
	}
	var failed error
	looks := &outageReporter{services: r, checkHub: func(context.Context) error { return failed }}
	report, err := newMetricsReporter(tenant, looks.checkHub, r.config, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	require.Zero(t, testutil.CollectAndCount(report.reachable), "a replica that is not elected has no metrics")
	counted := func(reachable, ready, pending, unknown int) {
		t.Helper()
		report.update(t.Context())
		require.EqualValues(t, reachable, testutil.ToFloat64(report.reachable))
		for state, n := range map[string]int{"ready": ready, "pending": pending, "unknown": unknown} {
			require.EqualValues(t, n, testutil.ToFloat64(report.counts.WithLabelValues(state)), state)
		}
	}
	looks.check(t.Context())
	require.Equal(t, metav1.ConditionTrue, is().Status)
	counted(1, 1, 0, 0)

	failed = errors.New("dial tcp 192.0.2.1:6443: connection refused")
	looks.check(t.Context())
	require.Equal(t, metav1.ConditionTrue, is().Status, "it may be a moment")
	looks.check(t.Context())
	require.Len(t, r.contact.changed, 1, "all Services are reconciled")
	unknown := is()
	require.Equal(t, metav1.ConditionUnknown, unknown.Status)
	require.Equal(t, "HubSilent", unknown.Reason)
	require.Contains(t, unknown.Message, ": dial tcp 192.0.2.1:6443: connection refused. Before that, the condition was: served")
	counted(0, 0, 0, 1)
	failed = errors.New("dial tcp 192.0.2.1:6443: i/o timeout")
	looks.check(t.Context())
	require.Equal(t, unknown, is(), "there is one event")
	require.Equal(t, 1, strings.Count(all(recorder), "SyncLoadBalancerFailed"))

	failed = nil
	looks.check(t.Context())
	require.Equal(t, metav1.ConditionTrue, is().Status)
	require.Equal(t, "Normal Ready served again", all(recorder), "it has recovered")
	counted(1, 1, 0, 0)
}

func TestTheReasonOfAnOutageChangesWhenTheHubRefusesCredentials(t *testing.T) {
	a := newHubContact(time.Unix(1_800_000_000, 0))
	a.set(errors.New("no route"), time.Now())
	ready := metav1.Condition{Status: metav1.ConditionTrue, Message: "served"}
	require.Contains(t, a.unknownWhileSilent(ready).Message, "since 2027-01-15T08:00:00Z: no route")
	a.set(apierrors.NewUnauthorized("Unauthorized"), time.Now())
	require.Contains(t, a.unknownWhileSilent(ready).Message, "since 2027-01-15T08:00:00Z: Unauthorized")
	pending := metav1.Condition{Status: metav1.ConditionFalse, Reason: "PoolExhausted"}
	require.Equal(t, pending, a.unknownWhileSilent(pending), "a condition that is not True stays")
}
