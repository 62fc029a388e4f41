package ccm

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

func TestTheMirroredConditionSaysWhatTheHubSays(t *testing.T) {
	lb := &v1alpha1.LoadBalancer{}
	require.Equal(t, "Pending", mirror(lb, nil).Reason)
	lb.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
	require.Equal(t, metav1.ConditionTrue, mirror(lb, nil).Status, "a KubeLB manager has no conditions")
	lb.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "PoolExhausted", Message: "no free address"}}
	require.Equal(t, "PoolExhausted", mirror(lb, nil).Reason)
	lb.Status.Conditions[0].Status = metav1.ConditionTrue
	require.Contains(t, mirror(lb, []translate.Problem{{Reason: "UnsupportedProtocol", Message: "SCTP"}}).Message, "served, but: SCTP")
}

func TestFlagsAreChecked(t *testing.T) {
	for want, o := range map[string]options{
		"--cluster-name is required": {nodeAddressType: "InternalIP"},
		"use InternalIP":             {clusterName: "a", nodeAddressType: "Public"},
	} {
		_, err := o.config()
		require.ErrorContains(t, err, want)
	}
	for _, name := range []string{"a", "tenant-a"} {
		o := options{clusterName: name, nodeAddressType: "Hostname"}
		config, err := o.config()
		require.NoError(t, err)
		require.Equal(t, "tenant-a", config.HubNamespace)
		require.NotNil(t, config.Resolver)
	}
}
