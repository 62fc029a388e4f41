package convert

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

func serviceWith(annotations map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid", Annotations: annotations},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080}}}}
}

// Whatever text annotations of a Service have, each is converted to a value that the hub's schema allows, or is a problem that names the annotation.
func FuzzServiceAnnotations(f *testing.F) {
	f.Add("192.0.2.0/24, 2001:db8::/32", "203.0.113.5,2001:db8:f::5", "direct", "v2", "public", "web", "1h30m")
	f.Add("192.0.2.0/24,", "203.0.113.5,203.0.113.6", "teleport", "v1", "no such name", "a\x1bb", "25h")
	f.Add("::ffff:192.0.2.0/120", "fe80::1%eth0", " nat", "V2", "-a", strings.Repeat("k", 254), "60000ms")
	f.Add(strings.Repeat("192.0.2.0/24,", 200), strings.Repeat("203.0.113.5,", 200), "", "", strings.Repeat("a", 254), "ö", "00000000000000001s")
	f.Add(" ", ",", "\x00", "\n", "a.b_c-D", "\u0085", "9999999999999h")
	pool, control := regexp.MustCompile(`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`), regexp.MustCompile(`[\x00-\x1f\x7f-\x9f]`)
	f.Fuzz(func(t *testing.T, ranges, requested, forwarding, proxy, addressPool, sharing, idle string) {
		lb, problems := translate.DesiredLoadBalancer(Service(serviceWith(map[string]string{
			corev1.AnnotationLoadBalancerSourceRangesKey: ranges, v1alpha1.AnnotationRequestedAddresses: requested, v1alpha1.AnnotationForwarding: forwarding,
			v1alpha1.AnnotationProxyProtocol: proxy, v1alpha1.AnnotationAddressPool: addressPool, v1alpha1.AnnotationSharingKey: sharing,
			v1alpha1.AnnotationIdleTimeout: idle,
		})), nil, nil, "InternalIP", "tenant-a")
		wrong := map[string]bool{}
		for _, p := range problems {
			annotation, is := strings.CutPrefix(p.Field, "metadata.annotations.")
			require.True(t, is, p.Field)
			require.Contains(t, p.Message, annotation)
			if !p.Partial {
				wrong[annotation] = true
			}
		}
		spec := LoadBalancer(lb).Spec
		if !wrong[corev1.AnnotationLoadBalancerSourceRangesKey] {
			require.LessOrEqual(t, len(spec.LoadBalancerSourceRanges), translate.MaxSourceRanges)
			for _, r := range spec.LoadBalancerSourceRanges {
				_, err := netip.ParsePrefix(r)
				require.NoError(t, err)
				require.LessOrEqual(t, len(r), 64)
			}
			require.Equal(t, strings.TrimSpace(ranges) == "", len(spec.LoadBalancerSourceRanges) == 0, "who may connect is never forgotten")
		}
		if !wrong[v1alpha1.AnnotationRequestedAddresses] {
			require.LessOrEqual(t, len(spec.RequestedAddresses), 2)
			for _, a := range spec.RequestedAddresses {
				_, err := netip.ParseAddr(a)
				require.NoError(t, err)
				require.LessOrEqual(t, len(a), 64)
			}
			require.Equal(t, strings.TrimSpace(requested) == "", len(spec.RequestedAddresses) == 0)
		}
		if !wrong[v1alpha1.AnnotationForwarding] {
			require.Contains(t, []string{"", "nat", "transparent", "direct"}, spec.Forwarding)
		}
		if !wrong[v1alpha1.AnnotationAddressPool] {
			require.Regexp(t, pool, spec.AddressPool)
			require.LessOrEqual(t, len(spec.AddressPool), 253)
			require.Equal(t, strings.TrimSpace(addressPool), spec.AddressPool)
		}
		if !wrong[v1alpha1.AnnotationSharingKey] {
			require.NotRegexp(t, control, spec.SharingKey)
			require.LessOrEqual(t, len([]rune(spec.SharingKey)), 253)
			require.Equal(t, strings.TrimSpace(sharing), spec.SharingKey)
		}
		if !wrong[v1alpha1.AnnotationProxyProtocol] {
			require.Contains(t, []string{"", translate.ProxyProtocolV2}, spec.ProxyProtocol)
		}
		if !wrong[v1alpha1.AnnotationIdleTimeout] {
			require.Regexp(t, "^([0-9]+[hms])*$", spec.IdleTimeout)
			require.LessOrEqual(t, len(spec.IdleTimeout), 16)
			require.Equal(t, strings.TrimSpace(idle), spec.IdleTimeout)
		}
	})
}
