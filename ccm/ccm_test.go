package ccm

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

func TestTheConditionOfAServiceIsThatOfItsLoadBalancer(t *testing.T) {
	lb := &v1alpha1.LoadBalancer{}
	require.Equal(t, "Pending", conditionOf(lb, nil).Reason)
	lb.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
	require.Equal(t, metav1.ConditionTrue, conditionOf(lb, nil).Status, "a KubeLB manager has no conditions")
	lb.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "PoolExhausted", Message: "no free address"}}
	require.Equal(t, "PoolExhausted", conditionOf(lb, nil).Reason)
	lb.Status.Conditions[0].Status = metav1.ConditionTrue
	require.Contains(t, conditionOf(lb, []translate.Problem{{Reason: "UnsupportedProtocol", Message: "SCTP"}}).Message, "served, but: SCTP")
}

func TestAnInvalidSettingKeepsItsLastValidValue(t *testing.T) {
	current := &v1alpha1.LoadBalancer{Spec: v1alpha1.LoadBalancerSpec{RequestedAddresses: []string{"203.0.113.5"}, Forwarding: "direct", ProxyProtocol: "v2", IdleTimeout: "10m", SharingKey: "before"}}
	problems := []translate.Problem{{Reason: translate.ReasonUnsupportedProtocol, Partial: true}, {Reason: translate.ReasonInvalidAddress, Message: "name one"},
		{Reason: translate.ReasonInvalidForwarding}, {Reason: translate.ReasonInvalidProxyProtocol}, {Reason: translate.ReasonInvalidIdleTimeout}}
	desired := &v1alpha1.LoadBalancer{Spec: v1alpha1.LoadBalancerSpec{SharingKey: "now"}}
	require.True(t, retain(desired, current, problems))
	require.Equal(t, v1alpha1.LoadBalancerSpec{RequestedAddresses: []string{"203.0.113.5"}, Forwarding: "direct", ProxyProtocol: "v2", IdleTimeout: "10m", SharingKey: "now"}, desired.Spec)
	_, refused := translate.Refused(problems)
	require.False(t, refused)
	require.Equal(t, "name one; until then the last valid value stays in effect", problems[1].Message)
	require.False(t, retain(desired, current, []translate.Problem{{Reason: translate.ReasonUnsupportedProtocol}}), "there is no port to serve")
}

func TestTheProxyProtocolAnnotationOfAFormerReleaseBecomesAField(t *testing.T) {
	current := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationProxyProtocol: "v2", "example.com/other": "x"}}}
	wished := &v1alpha1.LoadBalancer{}
	require.True(t, retain(wished, current, []translate.Problem{{Reason: translate.ReasonInvalidProxyProtocol}}))
	require.Equal(t, "v2", wished.Spec.ProxyProtocol, "the last valid value stays")

	require.True(t, merge(current, wished))
	require.Equal(t, "v2", current.Spec.ProxyProtocol)
	require.Equal(t, map[string]string{"example.com/other": "x"}, current.Annotations, "without the field the annotation would count again")
	require.False(t, merge(current, wished), "a second merge changes nothing")
}

func TestALoadBalancerIsWrittenOnlyIfItDiffersFromTheDesiredOne(t *testing.T) {
	wished := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelOriginName: "web"}}, Spec: v1alpha1.LoadBalancerSpec{Forwarding: "direct"}}
	for name, change := range map[string]func(*v1alpha1.LoadBalancer){
		"no label":       func(lb *v1alpha1.LoadBalancer) { lb.Labels = nil },
		"another label":  func(lb *v1alpha1.LoadBalancer) { lb.Labels[v1alpha1.LabelOriginName] = "mail" },
		"another spec":   func(lb *v1alpha1.LoadBalancer) { lb.Spec.Forwarding = "nat" },
		"spec of before": func(lb *v1alpha1.LoadBalancer) { lb.Spec.SharingKey = "before" },
	} {
		current := wished.DeepCopy()
		current.Labels["example.com/other"] = "x"
		require.False(t, merge(current, wished), name)
		change(current)
		require.True(t, merge(current, wished), name)
		require.Equal(t, wished.Spec, current.Spec, name)
		require.Equal(t, "web", current.Labels[v1alpha1.LabelOriginName], name)
	}
}

func TestTooManyPortsOrSourceRangesKeepTheLastValidValue(t *testing.T) {
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

func TestAddressesThatTheClusterDoesNotAcceptAreRemoved(t *testing.T) {
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
	require.Contains(t, refusal.Message, "gives this Service the address 10.96.0.10, which this cluster does not accept")
	name := corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{Hostname: "lb.example.com"}}}
	_, refusal = Config{}.filterStatus(name)
	require.Nil(t, refusal, "as a KubeLB manager may give")
	_, refusal = Config{AcceptAddresses: networks}.filterStatus(name)
	require.NotNil(t, refusal)
}
