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
	require.Equal(t, "Pending", conditionOf(lb, nil).Reason)
	lb.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
	require.Equal(t, metav1.ConditionTrue, conditionOf(lb, nil).Status, "a KubeLB manager has no conditions")
	lb.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "PoolExhausted", Message: "no free address"}}
	require.Equal(t, "PoolExhausted", conditionOf(lb, nil).Reason)
	lb.Status.Conditions[0].Status = metav1.ConditionTrue
	require.Contains(t, conditionOf(lb, []translate.Problem{{Reason: "UnsupportedProtocol", Message: "SCTP"}}).Message, "served, but: SCTP")
}

func TestASettingThatCannotBeReadStaysAsItWas(t *testing.T) {
	current := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationProxyProtocol: "v2"}},
		Spec: v1alpha1.LoadBalancerSpec{RequestedAddresses: []string{"203.0.113.5"}, Forwarding: "direct", SharingKey: "before"}}
	problems := []translate.Problem{{Reason: translate.ReasonUnsupportedProtocol, Partial: true}, {Reason: translate.ReasonInvalidAddress, Message: "name one"},
		{Reason: translate.ReasonInvalidForwarding}, {Reason: translate.ReasonInvalidProxyProtocol}}
	desired := &v1alpha1.LoadBalancer{Spec: v1alpha1.LoadBalancerSpec{SharingKey: "now"}}
	require.True(t, retain(desired, current, problems))
	require.Equal(t, v1alpha1.LoadBalancerSpec{RequestedAddresses: []string{"203.0.113.5"}, Forwarding: "direct", SharingKey: "now"}, desired.Spec)
	require.Equal(t, current.Annotations, desired.Annotations)
	_, refused := translate.Refused(problems)
	require.False(t, refused)
	require.Equal(t, "name one; until then that stays as it was", problems[1].Message)
	require.False(t, retain(desired, current, []translate.Problem{{Reason: translate.ReasonUnsupportedProtocol}}), "there is no port to serve")
}

func TestPortsAndSourceRangesStayAsTheyWereWhereThereAreTooMany(t *testing.T) {
	endpoints := func(port int32) []v1alpha1.LoadBalancerEndpoints {
		return []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: port}}}}
	}
	current := &v1alpha1.LoadBalancer{Spec: v1alpha1.LoadBalancerSpec{LoadBalancerSourceRanges: []string{"192.0.2.0/24"}, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}}, Endpoints: endpoints(30080)}}
	desired := &v1alpha1.LoadBalancer{Spec: v1alpha1.LoadBalancerSpec{Endpoints: endpoints(30081)}}
	problems := []translate.Problem{{Reason: translate.ReasonTooManySourceRanges}, {Reason: translate.ReasonTooManyPorts}}
	require.True(t, retain(desired, current, problems))
	require.Equal(t, current.Spec, desired.Spec)
	_, refused := translate.Refused(problems)
	require.False(t, refused)
}

func TestFlagsAreChecked(t *testing.T) {
	for want, o := range map[string]options{
		"--cluster-name is required":  {nodeAddressType: "InternalIP"},
		"use InternalIP":              {clusterName: "a", nodeAddressType: "Public"},
		`"203.0.113.1" is not a CIDR`: {clusterName: "a", nodeAddressType: "InternalIP", acceptAddresses: "2001:db8::/64, 203.0.113.1"},
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

func TestAddressesThatTheClusterDoesNotTakeStayOut(t *testing.T) {
	given := func(ips ...string) (status corev1.LoadBalancerStatus) {
		for _, ip := range ips {
			status.Ingress = append(status.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		return status
	}
	all := given("203.0.113.1", "2001:db8:f::1")
	accepted, refusal := Config{}.filterStatus(all)
	require.Equal(t, all, accepted)
	require.Nil(t, refusal)
	for _, never := range []string{"127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "255.255.255.255", "::1", "fe80::1", "nonsense"} {
		accepted, refusal = Config{}.filterStatus(given(never))
		require.Empty(t, accepted.Ingress, never)
		require.Equal(t, "AddressNotAccepted", refusal.Reason)
	}
	networks, err := parseNetworks("203.0.113.0/24,2001:db8:f::/64")
	require.NoError(t, err)
	accepted, refusal = Config{AcceptAddresses: networks}.filterStatus(all)
	require.Equal(t, all, accepted)
	require.Nil(t, refusal)
	accepted, refusal = Config{AcceptAddresses: networks}.filterStatus(given("10.96.0.10", "203.0.113.1"))
	require.Equal(t, given("203.0.113.1"), accepted)
	require.Contains(t, refusal.Message, "gives it 10.96.0.10, which this cluster does not take")
	name := corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{Hostname: "lb.example.com"}}}
	_, refusal = Config{}.filterStatus(name)
	require.Nil(t, refusal, "as a KubeLB manager may give")
	_, refusal = Config{AcceptAddresses: networks}.filterStatus(name)
	require.NotNil(t, refusal)
}
