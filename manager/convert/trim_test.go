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
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert/converttest"
)

func TestTheCacheKeepsOnlyFieldsThatAreRead(t *testing.T) {
	long := strings.Repeat("x", 200)
	local := []v1alpha1.EndpointAddress{{IP: "198.51.100.11", Hostname: long}}
	lb := &v1alpha1.LoadBalancer{
		ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "web", UID: "uid", ResourceVersion: "7", Generation: 3, Finalizers: []string{v1alpha1.CleanupFinalizer},
			Labels:      map[string]string{v1alpha1.LabelOriginName: "web", v1alpha1.LabelOriginNamespace: "shop", "more": long},
			Annotations: map[string]string{"more": long, v1alpha1.AnnotationSourceRanges: "192.0.2.0/24", v1alpha1.AnnotationProxyProtocol: "v2", v1alpha1.AnnotationIdleTimeout: "10m"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: long}}},
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
	is := unpacked(LoadBalancer(kept.(*v1alpha1.LoadBalancer)))
	require.Equal(t, "198.51.100.11", is.Addresses[0].IP)
	whole.Addresses[0].Hostname, whole.Addresses[1].Hostname, (*whole.Local)[0].Hostname = "", long[:maxHostname], ""
	require.Equal(t, whole, is, "it means the same")
	require.Equal(t, "7", lb.ResourceVersion)
	require.Equal(t, []string{v1alpha1.CleanupFinalizer}, lb.Finalizers)
}

func TestTheCachePacksTargets(t *testing.T) {
	lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}, Spec: v1alpha1.LoadBalancerSpec{Endpoints: []v1alpha1.LoadBalancerEndpoints{{}}}}
	e := &lb.Spec.Endpoints[0]
	for i := range 5000 {
		e.Addresses = append(e.Addresses, v1alpha1.EndpointAddress{IP: fmt.Sprintf("10.0.%d.%d", i>>8, i&255)})
	}
	read := lb.DeepCopy()
	for range 2 { // a cache may trim an object twice
		_, err := trim(lb)
		require.NoError(t, err)
		require.Nil(t, e.Addresses)
		require.Len(t, e.Packed.Addresses, 5*5000)
		require.Nil(t, e.LocalAddresses, "which is another request than an empty list")
		require.Equal(t, LoadBalancer(read), unpacked(LoadBalancer(lb.DeepCopy())))
	}
	text, err := json.Marshal(lb)
	require.NoError(t, err)
	require.Less(t, len(text), 1000, "no client sees it, and a write of a status does not carry it")

	none, err := json.Marshal(v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "8"}, Spec: v1alpha1.LoadBalancerSpec{Endpoints: []v1alpha1.LoadBalancerEndpoints{{}}}})
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(none, lb), "as the answer to a write does")
	require.Empty(t, LoadBalancer(lb).OwnTargets().List, "this version has none")
	require.False(t, HasOwnTargets(lb))
}

// unpacked returns the object with its targets in lists, as without a cache.
func unpacked(lb translate.LoadBalancer) translate.LoadBalancer {
	lb.Addresses = lb.Packed.Addresses.Unpack()
	if lb.Local != nil {
		local := lb.Packed.Local.Unpack()
		lb.Local = &local
	}
	lb.Packed = translate.PackedTargets{}
	return lb
}

// A gateway's loop reads each changed LoadBalancer, and elects in between. A controller writes the status often.
func TestTheCostOfReadingALoadBalancerDoesNotDependOnItsTargets(t *testing.T) {
	of := func(targets int) *v1alpha1.LoadBalancer {
		lb := converttest.LoadBalancer(1, 1)
		e := &lb.Spec.Endpoints[0]
		local := slices.Clone(e.Addresses[:targets])
		e.Addresses, e.LocalAddresses = slices.Clone(local), &local
		kept, err := trim(lb)
		require.NoError(t, err)
		return kept.(*v1alpha1.LoadBalancer)
	}
	one, many := of(1), of(translate.MaxTargets)
	hub := translate.NewTranslator()
	for what, read := range map[string]func(*v1alpha1.LoadBalancer){
		"a gateway learns of a version": func(lb *v1alpha1.LoadBalancer) { hub.SetLoadBalancer(LoadBalancer(lb)) },
		"what is on record":             func(lb *v1alpha1.LoadBalancer) { Settings(lb) },
		"what it asks for":              func(lb *v1alpha1.LoadBalancer) { WithoutTargets(lb) },
	} {
		t.Run(what, func(t *testing.T) {
			few := testing.AllocsPerRun(5, func() { read(one) })
			require.InDelta(t, few, testing.AllocsPerRun(5, func() { read(many) }), few/20+1)
		})
	}
}

func TestTheCacheTrimsAnnotations(t *testing.T) {
	blanks, junk := strings.Repeat(" ", 8000), strings.Repeat("x", 16384)
	key := strings.Repeat("é", 253)
	of := func(annotations map[string]string) *v1alpha1.LoadBalancer {
		return &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: annotations}}
	}
	for what, annotations := range map[string]map[string]string{
		"ranges between blanks":      {v1alpha1.AnnotationSourceRanges: blanks + "192.0.2.0/24," + blanks + "2001:db8::/32"},
		"an address after blanks":    {v1alpha1.AnnotationRequestedAddresses: blanks + "203.0.113.1"},
		"a key with blanks in it":    {v1alpha1.AnnotationSharingKey: blanks + "a   b"},
		"the longest key":            {v1alpha1.AnnotationSharingKey: key},
		"no number":                  {v1alpha1.AnnotationHealthCheckNodePort: " 5"},
		"a number that is too large": {v1alpha1.AnnotationAffinityTimeout: "99999999"},
	} {
		t.Run(what, func(t *testing.T) {
			lb := of(annotations)
			want := LoadBalancer(lb.DeepCopy())
			_, err := trim(lb)
			require.NoError(t, err)
			require.Equal(t, want, LoadBalancer(lb))
			for _, value := range lb.Annotations {
				require.Less(t, len(value), 600)
			}
		})
	}
	for annotation := range readAnnotations {
		lb := of(map[string]string{annotation: junk})
		want := LoadBalancer(lb.DeepCopy())
		_, err := trim(lb)
		require.NoError(t, err)
		require.Less(t, len(lb.Annotations[annotation]), 300, annotation)
		require.Equal(t, want, LoadBalancer(lb), "%s: the annotation is refused as before", annotation)
	}
}

// The admission policies refuse such lists, but an operator may have removed the policies.
func TestTheCacheKeepsFewFinalizers(t *testing.T) {
	cleanup := v1alpha1.CleanupFinalizer
	var others []string
	for i := range 60_000 {
		others = append(others, fmt.Sprintf("kubelb.k8c.io/more-%d", i))
	}
	for what, c := range map[string]struct{ has, kept []string }{
		"none":                                   {nil, nil},
		"the one of KubeLB":                      {[]string{cleanup}, []string{cleanup}},
		"the same again and again":               {slices.Repeat([]string{cleanup}, 60_000), []string{cleanup}},
		"with an operator's finalizer":           {[]string{"example.com/backup", cleanup}, []string{cleanup}},
		"behind many other finalizers of KubeLB": {append(slices.Clone(others), cleanup), append(slices.Clone(others[:maxFinalizers]), cleanup)},
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
