package ccm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

func TestAnEventReportsThatAServiceHasRecovered(t *testing.T) {
	web := served("web", func(s *corev1.Service) { s.Status = corev1.ServiceStatus{} })
	tenant := clusterOf(t, web)
	r, recorder := reconcilerOf(t, tenant, nil)
	address := corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}}
	publish := func(status metav1.ConditionStatus, reason string, problems ...translate.Problem) []string {
		t.Helper()
		has := corev1.LoadBalancerStatus{}
		if reason != "PoolExhausted" {
			has = address
		}
		condition := metav1.Condition{Type: conditionReady, Status: status, Reason: reason, Message: "because"}
		if reason == "Ready" {
			condition.Message = "served"
		}
		require.NoError(t, r.publish(t.Context(), get(t, tenant, web), &has, condition, problems))
		if events := all(recorder); events != "" {
			return strings.Split(events, "\n")
		}
		return nil
	}
	const again = "Normal Ready served again"
	require.Equal(t, []string{"Warning SyncLoadBalancerFailed because"}, publish(metav1.ConditionFalse, "PoolExhausted"))
	require.Equal(t, []string{"Normal EnsuredLoadBalancer Ensured load balancer"}, publish(metav1.ConditionTrue, "Ready"), "EnsuredLoadBalancer reports the recovery")
	require.Empty(t, publish(metav1.ConditionTrue, "Ready"))

	require.Len(t, publish(metav1.ConditionFalse, v1alpha1.ReasonConnectionsFail), 1)
	require.Equal(t, []string{again}, publish(metav1.ConditionTrue, "Ready"))
	require.Len(t, publish(metav1.ConditionTrue, v1alpha1.ReasonAddressConflict), 1)
	require.Equal(t, []string{again}, publish(metav1.ConditionTrue, "Ready"))
	require.Len(t, publish(metav1.ConditionTrue, translate.ReasonNoNodes), 1)
	require.Equal(t, []string{again}, publish(metav1.ConditionTrue, "Ready"))

	require.Len(t, publish(metav1.ConditionFalse, "NotAnnounced"), 1)
	require.Empty(t, publish(metav1.ConditionFalse, "WaitingForAnnouncement"), "waiting is no recovery")
	require.Equal(t, []string{again}, publish(metav1.ConditionTrue, "Ready"))

	require.Empty(t, publish(metav1.ConditionFalse, "WaitingForGateway"))
	require.Empty(t, publish(metav1.ConditionTrue, "Ready"), "waiting is no fault")

	require.Len(t, publish(metav1.ConditionFalse, v1alpha1.ReasonConnectionsFail), 1)
	r, recorder = reconcilerOf(t, tenant, nil)
	require.Equal(t, []string{again}, publish(metav1.ConditionTrue, "Ready"), "a new process knows the fault from the status")
}
