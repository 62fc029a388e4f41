package convert

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"kubelb.k8c.io/api/crds"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
)

func TestAnnotationsReplaceFieldsThatAreNotSet(t *testing.T) {
	lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		v1alpha1.AnnotationSourceRanges:        "192.0.2.0/24, 2001:db8::/32",
		v1alpha1.AnnotationAffinityTimeout:     "60",
		v1alpha1.AnnotationIPFamilies:          "IPv6,IPv4",
		v1alpha1.AnnotationIPFamilyPolicy:      "RequireDualStack",
		v1alpha1.AnnotationRequestedAddresses:  "203.0.113.5",
		v1alpha1.AnnotationHealthCheckNodePort: "31000",
		v1alpha1.AnnotationForwarding:          "direct",
		v1alpha1.AnnotationProxyProtocol:       "v2",
		v1alpha1.AnnotationIdleTimeout:         " 10m",
		"metallb.universe.tf/loadBalancerIPs":  "203.0.113.9",
	}}, Spec: v1alpha1.LoadBalancerSpec{Persistence: &v1alpha1.Persistence{Type: v1alpha1.PersistenceSourceIP}}}
	got := LoadBalancer(lb)
	require.Empty(t, got.Malformed)
	require.Equal(t, []string{"192.0.2.0/24", "2001:db8::/32"}, got.SourceRanges)
	require.EqualValues(t, 60, got.AffinitySeconds)
	require.Equal(t, []ipam.Family{ipam.IPv6, ipam.IPv4}, got.Families)
	require.Equal(t, ipam.RequireDualStack, got.FamilyPolicy)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("203.0.113.5")}, got.Requested)
	require.EqualValues(t, 31000, got.HealthCheckNodePort)
	require.Equal(t, "direct", got.Forwarding)
	require.Equal(t, "v2", got.ProxyProtocol)
	require.Equal(t, "10m", got.IdleTimeout)
}

func TestFieldsTakePrecedenceOverAnnotations(t *testing.T) {
	seconds := int32(90)
	lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		v1alpha1.AnnotationSourceRanges: "10.0.0.0/8", v1alpha1.AnnotationAffinityTimeout: "60", v1alpha1.AnnotationIPFamilies: "IPv6", v1alpha1.AnnotationForwarding: "direct",
		v1alpha1.AnnotationProxyProtocol: "v3", v1alpha1.AnnotationIdleTimeout: "soon",
	}}, Spec: v1alpha1.LoadBalancerSpec{
		LoadBalancerSourceRanges: []string{"192.0.2.0/24"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Forwarding: "nat", ProxyProtocol: "v2", IdleTimeout: "90s",
		Persistence: &v1alpha1.Persistence{Type: v1alpha1.PersistenceSourceIP, TimeoutSeconds: &seconds}}}
	got := LoadBalancer(lb)
	require.Empty(t, got.Malformed)
	require.Equal(t, []string{"192.0.2.0/24"}, got.SourceRanges)
	require.EqualValues(t, 90, got.AffinitySeconds)
	require.Equal(t, []ipam.Family{ipam.IPv4}, got.Families)
	require.Equal(t, "nat", got.Forwarding)
	require.Equal(t, "v2", got.ProxyProtocol)
	require.Equal(t, "90s", got.IdleTimeout)
}

func TestInvalidAnnotationsAreReported(t *testing.T) {
	for key, value := range map[string]string{
		v1alpha1.AnnotationIPFamilies: "IPv5", v1alpha1.AnnotationIPFamilyPolicy: "Triple", v1alpha1.AnnotationRequestedAddresses: "example.com",
		v1alpha1.AnnotationHealthCheckNodePort: "70000", v1alpha1.AnnotationForwarding: "teleport",
		v1alpha1.AnnotationProxyProtocol: "v1", v1alpha1.AnnotationIdleTimeout: "soon",
	} {
		problems := LoadBalancer(&v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{key: value}}}).Malformed
		require.Len(t, problems, 1, key)
		require.Contains(t, problems[0].Message, key)
		require.Contains(t, problems[0].Message, value)
	}
}

func TestInvalidAnnotationsKeepTheirLastValidValueWhileThereAreAddresses(t *testing.T) {
	const ranges = v1alpha1.AnnotationSourceRanges
	served := func(annotations map[string]string) *v1alpha1.LoadBalancer {
		lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: annotations}}
		lb.Status.Addresses = []v1alpha1.AllocatedAddress{{Address: "203.0.113.5", Pool: "public"}}
		return lb
	}
	lb := served(map[string]string{v1alpha1.AnnotationForwarding: "direct", v1alpha1.AnnotationProxyProtocol: "v2", v1alpha1.AnnotationIdleTimeout: "10m", ranges: "192.0.2.0/24", "example.com/other": "x"})
	lb.Status.Settings = Settings(lb)
	require.Equal(t, map[string]string{v1alpha1.AnnotationForwarding: "direct", v1alpha1.AnnotationProxyProtocol: "v2", v1alpha1.AnnotationIdleTimeout: "10m", ranges: "192.0.2.0/24"}, lb.Status.Settings)
	lb.Annotations = map[string]string{v1alpha1.AnnotationForwarding: "diretc", v1alpha1.AnnotationProxyProtocol: "v3", v1alpha1.AnnotationIdleTimeout: "0s", v1alpha1.AnnotationIPFamilies: "IPv5", ranges: "198.51.100.0/24"}
	got := LoadBalancer(lb)
	require.Equal(t, "direct", got.Forwarding)
	require.Equal(t, "v2", got.ProxyProtocol)
	require.Equal(t, "10m", got.IdleTimeout)
	require.Empty(t, got.Families, "it was not set before")
	require.Equal(t, []string{"198.51.100.0/24"}, got.SourceRanges, "everything else follows")
	require.Len(t, got.Malformed, 4)
	for _, p := range got.Malformed {
		require.True(t, p.Partial, p.Message)
		require.Contains(t, p.Message, "; until then the last valid value stays in effect")
	}
	lb.Status.Settings = Settings(lb)
	require.Equal(t, map[string]string{v1alpha1.AnnotationForwarding: "direct", v1alpha1.AnnotationProxyProtocol: "v2", v1alpha1.AnnotationIdleTimeout: "10m", ranges: "198.51.100.0/24"}, lb.Status.Settings)

	lb.Annotations = map[string]string{ranges: "everybody"}
	_, refused := translate.Refused(LoadBalancer(lb).Malformed)
	require.True(t, refused, "more clients might be let in than are meant to")
	lb.Annotations = map[string]string{v1alpha1.AnnotationForwarding: "diretc"}
	lb.Status.Addresses = nil
	_, refused = translate.Refused(LoadBalancer(lb).Malformed)
	require.True(t, refused, "it has never been served")
	lb.Annotations = nil
	require.Nil(t, Settings(lb))
}

func TestAnAnnotationHasNoMoreEntriesThanTheSchemaAllowsItsField(t *testing.T) {
	text, err := crds.Files.ReadFile("kubelb.k8c.io_loadbalancers.yaml")
	require.NoError(t, err)
	var crd map[string]any
	require.NoError(t, yaml.Unmarshal(text, &crd))
	versions, _, err := unstructured.NestedSlice(crd, "spec", "versions")
	require.NoError(t, err)
	schema := func(field string) int {
		most, found, err := unstructured.NestedInt64(versions[0].(map[string]any), "schema", "openAPIV3Schema", "properties", "spec", "properties", field, "maxItems")
		require.NoError(t, err)
		require.True(t, found, field)
		return int(most)
	}
	for key, c := range map[string]struct{ field, entry string }{
		v1alpha1.AnnotationSourceRanges:       {"loadBalancerSourceRanges", "192.0.2.0/24"},
		v1alpha1.AnnotationIPFamilies:         {"ipFamilies", "IPv4"},
		v1alpha1.AnnotationRequestedAddresses: {"requestedAddresses", "203.0.113.5"},
	} {
		most := schema(c.field)
		with := func(n int) *v1alpha1.LoadBalancer {
			return &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{key: strings.Join(slices.Repeat([]string{c.entry}, n), ",")}}}
		}
		require.Empty(t, LoadBalancer(with(most)).Malformed, key)
		problems := LoadBalancer(with(most + 1)).Malformed
		require.Len(t, problems, 1, key)
		require.Equal(t, "metadata.annotations."+key, problems[0].Field)
		require.Contains(t, problems[0].Message, fmt.Sprintf("has more than %d entries: use %[1]d at most", most))
	}
	require.Equal(t, translate.MaxSourceRanges, schema("loadBalancerSourceRanges"))
	require.Equal(t, translate.MaxPorts, schema("ports"))
}

func TestAnEmptyLocalListIsNotAnAbsentOne(t *testing.T) {
	endpoints := v1alpha1.LoadBalancerEndpoints{AddressesReference: &v1alpha1.AddressesReference{Name: "default"}}
	lb := &v1alpha1.LoadBalancer{Spec: v1alpha1.LoadBalancerSpec{Endpoints: []v1alpha1.LoadBalancerEndpoints{endpoints}}}
	got := LoadBalancer(lb)
	require.Nil(t, got.Local)
	lb.Spec.Endpoints[0].LocalAddresses = &[]v1alpha1.EndpointAddress{}
	got = LoadBalancer(lb)
	require.NotNil(t, got.Local)
	require.Empty(t, *got.Local)
}

func TestTheDefaultPortLimitFollowsTheNumberOfObjects(t *testing.T) {
	n := func(n int32) *int32 { return &n }
	for name, c := range map[string]struct {
		spec  v1alpha1.TenantSpec
		ports int32
	}{
		"nothing is set":                {v1alpha1.TenantSpec{}, 5000},
		"ports are":                     {v1alpha1.TenantSpec{Limits: v1alpha1.TenantLimits{Ports: n(300)}, Objects: v1alpha1.TenantObjects{LoadBalancers: n(10000)}}, 300},
		"many objects are":              {v1alpha1.TenantSpec{Objects: v1alpha1.TenantObjects{LoadBalancers: n(10000)}}, 100000},
		"few objects are":               {v1alpha1.TenantSpec{Objects: v1alpha1.TenantObjects{LoadBalancers: n(1)}}, 256},
		"more objects than are counted": {v1alpha1.TenantSpec{Objects: v1alpha1.TenantObjects{LoadBalancers: n(math.MaxInt32)}}, math.MaxInt32},
		"many that may be served":       {v1alpha1.TenantSpec{Limits: v1alpha1.TenantLimits{LoadBalancers: n(1000)}}, 20000},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.ports, *Tenant(&v1alpha1.Tenant{Spec: c.spec}).Limits.Ports)
		})
	}
}

func TestATenantWithFewerObjectsMayHaveMoreEndpointsInEach(t *testing.T) {
	n := func(n int32) *int32 { return &n }
	for name, c := range map[string]struct {
		spec      v1alpha1.TenantSpec
		own, most uint32
	}{
		"nothing is set":   {v1alpha1.TenantSpec{}, 250, 0},
		"many objects are": {v1alpha1.TenantSpec{Objects: v1alpha1.TenantObjects{LoadBalancers: n(10000)}}, 250, 0},
		"few objects are":  {v1alpha1.TenantSpec{Objects: v1alpha1.TenantObjects{LoadBalancers: n(50)}}, 2500, 0},
		"none may be":      {v1alpha1.TenantSpec{Objects: v1alpha1.TenantObjects{LoadBalancers: n(0)}}, 125000, 0},
		"the limit is":     {v1alpha1.TenantSpec{Limits: v1alpha1.TenantLimits{EndpointsPerLoadBalancer: n(1000)}}, 250, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			tenant := Tenant(&v1alpha1.Tenant{Spec: c.spec})
			require.Equal(t, c.own, tenant.OwnEndpointsPerLoadBalancer)
			require.Equal(t, c.most, tenant.EndpointsPerLoadBalancer)
		})
	}
}
