package convert

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestWhatTheCacheKeepsOfATenantsObjectIsWhatIsLookedAt(t *testing.T) {
	long := strings.Repeat("x", 200)
	local := []v1alpha1.EndpointAddress{{IP: "198.51.100.11", Hostname: long}}
	lb := &v1alpha1.LoadBalancer{
		ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "web", UID: "uid", ResourceVersion: "7", Generation: 3, Finalizers: []string{v1alpha1.CleanupFinalizer},
			Labels:      map[string]string{v1alpha1.LabelOriginName: "web", v1alpha1.LabelOriginNamespace: "shop", "more": long},
			Annotations: map[string]string{"more": long, v1alpha1.AnnotationSourceRanges: "192.0.2.0/24", v1alpha1.AnnotationProxyProtocol: "v2"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: long}}},
		Spec: v1alpha1.LoadBalancerSpec{Hostname: long, Ports: []v1alpha1.LoadBalancerPort{{Name: "http", Port: 80}}, Endpoints: []v1alpha1.LoadBalancerEndpoints{
			{Name: long, Addresses: []v1alpha1.EndpointAddress{{IP: "198.51.100.11", Hostname: long}, {Hostname: long}}, LocalAddresses: &local, Ports: []v1alpha1.EndpointPort{{Port: 30080}}},
			{Addresses: []v1alpha1.EndpointAddress{{IP: "198.51.100.12"}}}}},
		Status: v1alpha1.LoadBalancerStatus{Addresses: []v1alpha1.AllocatedAddress{{Address: "203.0.113.1", Pool: "public"}}, Service: &v1alpha1.ServiceStatus{}},
	}
	whole := LoadBalancer(lb.DeepCopy())
	kept, err := trim(lb)
	require.NoError(t, err)
	text, err := json.Marshal(kept)
	require.NoError(t, err)
	require.NotContains(t, string(text), long)
	is := LoadBalancer(kept.(*v1alpha1.LoadBalancer))
	for _, list := range [][]v1alpha1.EndpointAddress{lb.Spec.Endpoints[0].Addresses, *lb.Spec.Endpoints[0].LocalAddresses} {
		require.Equal(t, "198.51.100.11", list[0].IP)
	}
	whole.Addresses[0].Hostname, whole.Addresses[1].Hostname, (*whole.Local)[0].Hostname = "", long[:maxHostname], ""
	require.Equal(t, whole, is, "it means the same")
	require.Equal(t, "7", lb.ResourceVersion)
	require.Equal(t, []string{v1alpha1.CleanupFinalizer}, lb.Finalizers)
}

// The policies refuse such lists, but an operator may have taken them away.
func TestTheCacheKeepsFewFinalizersHoweverManyAnObjectHas(t *testing.T) {
	cleanup := v1alpha1.CleanupFinalizer
	var others []string
	for i := range 60_000 {
		others = append(others, fmt.Sprintf("kubelb.k8c.io/more-%d", i))
	}
	for what, c := range map[string]struct{ has, kept []string }{
		"none":                       {nil, nil},
		"the one of KubeLB":          {[]string{cleanup}, []string{cleanup}},
		"the same again and again":   {slices.Repeat([]string{cleanup}, 60_000), []string{cleanup}},
		"an operator's beside it":    {[]string{"example.com/backup", cleanup}, []string{cleanup}},
		"it behind many of its kind": {append(slices.Clone(others), cleanup), append(slices.Clone(others[:maxFinalizers]), cleanup)},
	} {
		t.Run(what, func(t *testing.T) {
			lb, err := trim(&v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Finalizers: c.has}})
			require.NoError(t, err)
			require.Equal(t, c.kept, lb.(*v1alpha1.LoadBalancer).Finalizers)
			nodes, err := trim(&v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Finalizers: c.has}})
			require.NoError(t, err)
			require.Equal(t, c.kept, nodes.(*v1alpha1.Addresses).Finalizers)
		})
	}
}
