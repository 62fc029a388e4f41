package convert

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

func TestEachFieldOfAServiceIsConverted(t *testing.T) {
	seconds, policy := int32(90), corev1.IPFamilyPolicyRequireDualStack
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid-1", Annotations: map[string]string{
			"kubectl.kubernetes.io/last-applied-configuration": "{}", "example.com/secret": "x"}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerIP: "203.0.113.5", HealthCheckNodePort: 31000,
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicyLocal,
			LoadBalancerSourceRanges: []string{"192.0.2.0/24"},
			SessionAffinity:          corev1.ServiceAffinityClientIP,
			SessionAffinityConfig:    &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}},
			IPFamilies:               []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{{Port: 53, NodePort: 30053, Protocol: corev1.ProtocolUDP}},
		},
	}
	desired, problems := translate.DesiredLoadBalancer(Service(service), nil, nil, "InternalIP", "tenant-a")
	require.Empty(t, problems)
	lb := LoadBalancer(desired)
	require.Equal(t, "tenant-a/uid-1", lb.Namespace+"/"+lb.Name)
	require.Equal(t, map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: "web", v1alpha1.LabelTenant: "tenant-a"}, lb.Labels)
	require.Empty(t, lb.Annotations, "a Service's annotations never reach the hub")
	s := lb.Spec
	require.Equal(t, corev1.ServiceTypeLoadBalancer, s.Type)
	require.Equal(t, []v1alpha1.LoadBalancerPort{{Name: "53-udp", Port: 53, Protocol: corev1.ProtocolUDP}}, s.Ports)
	require.Equal(t, []v1alpha1.EndpointPort{{Name: "53-udp", Port: 30053, Protocol: corev1.ProtocolUDP}}, s.Endpoints[0].Ports)
	require.Equal(t, "default", s.Endpoints[0].AddressesReference.Name)
	require.NotNil(t, s.Endpoints[0].LocalAddresses)
	require.Equal(t, corev1.ServiceExternalTrafficPolicyLocal, s.ExternalTrafficPolicy)
	require.Equal(t, []string{"192.0.2.0/24"}, s.LoadBalancerSourceRanges)
	require.EqualValues(t, 90, *s.Persistence.TimeoutSeconds)
	require.Equal(t, []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, s.IPFamilies)
	require.Equal(t, policy, s.IPFamilyPolicy)
	require.Equal(t, []string{"203.0.113.5"}, s.RequestedAddresses)
	require.EqualValues(t, 31000, s.HealthCheckNodePort)
}

func TestAbsentConditionsOfAnEndpointHaveDefaults(t *testing.T) {
	node, no := "n1", false
	slice := Slice(&discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{
		{NodeName: &node},
		{NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
		{},
	}})
	require.Equal(t, []translate.SliceEndpoint{{Node: "n1", Ready: true, Serving: true}, {Node: "n1"}}, slice.Endpoints)
}
