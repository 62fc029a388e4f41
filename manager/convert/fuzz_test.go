package convert

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// Whatever text annotations of a LoadBalancer have, each is converted to a value that the schema allows for the field, or is a problem that names the annotation.
func FuzzLoadBalancerAnnotations(f *testing.F) {
	f.Add("192.0.2.0/24, 2001:db8::/32", "203.0.113.5,2001:db8:f::5", "direct", "IPv4,IPv6", "RequireDualStack", "public", "web", "30001", "90", "10m")
	f.Add("everybody", "fe80::1%eth0", "teleport", "IPv5", "Triple", "no such name", "a\x1bb", "70000", "-1", "soon")
	f.Add("192.0.2.0/24,", "::ffff:203.0.113.5", " nat", ",", "SingleStack ", "-a", strings.Repeat("k", 254), "+5", " 5", "90000ms")
	f.Add(strings.Repeat("192.0.2.0/24,", 200), strings.Repeat("203.0.113.5,", 200), "", "", "", strings.Repeat("a", 254), "\u0085", "99999999999999999999", "0", "9999999999999h")
	pool, control := regexp.MustCompile(`^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$`), regexp.MustCompile(`[\x00-\x1f\x7f-\x9f]`)
	f.Fuzz(func(t *testing.T, ranges, requested, forwarding, families, policy, addressPool, sharing, port, affinity, idle string) {
		annotations := map[string]string{
			v1alpha1.AnnotationSourceRanges: ranges, v1alpha1.AnnotationRequestedAddresses: requested, v1alpha1.AnnotationForwarding: forwarding,
			v1alpha1.AnnotationIPFamilies: families, v1alpha1.AnnotationIPFamilyPolicy: policy, v1alpha1.AnnotationAddressPool: addressPool,
			v1alpha1.AnnotationSharingKey: sharing, v1alpha1.AnnotationHealthCheckNodePort: port, v1alpha1.AnnotationAffinityTimeout: affinity,
			v1alpha1.AnnotationIdleTimeout: idle,
		}
		lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Annotations: annotations}}
		lb.Spec.Persistence = &v1alpha1.Persistence{}
		got := LoadBalancer(lb)
		wrong := map[string]bool{}
		for _, p := range got.Malformed {
			annotation, is := strings.CutPrefix(p.Field, "metadata.annotations.")
			require.True(t, is, p.Field)
			require.Contains(t, annotations, annotation)
			require.Contains(t, p.Message, annotation)
			require.False(t, p.Partial)
			wrong[annotation] = true
		}
		taken := func(annotation string, taken bool) {
			t.Helper()
			if said := strings.TrimSpace(annotations[annotation]) != ""; !wrong[annotation] {
				require.Equal(t, said, taken, "%s: %q", annotation, annotations[annotation])
			}
		}
		require.LessOrEqual(t, len(got.SourceRanges), translate.MaxSourceRanges)
		for _, r := range got.SourceRanges {
			_, err := netip.ParsePrefix(r)
			require.NoError(t, err)
		}
		taken(v1alpha1.AnnotationSourceRanges, len(got.SourceRanges) > 0)
		require.LessOrEqual(t, len(got.Requested), oneOfEach)
		for _, a := range got.Requested {
			require.True(t, a.IsValid() && a.Zone() == "" && !a.Is4In6())
		}
		taken(v1alpha1.AnnotationRequestedAddresses, len(got.Requested) > 0)
		require.Contains(t, []string{"", "nat", "transparent", "direct"}, got.Forwarding)
		taken(v1alpha1.AnnotationForwarding, got.Forwarding != "")
		require.LessOrEqual(t, len(got.Families), oneOfEach)
		taken(v1alpha1.AnnotationIPFamilies, len(got.Families) > 0)
		require.Contains(t, []string{"", "SingleStack", "PreferDualStack", "RequireDualStack"}, string(got.FamilyPolicy))
		taken(v1alpha1.AnnotationIPFamilyPolicy, got.FamilyPolicy != "")
		require.Regexp(t, pool, got.AddressPool)
		require.LessOrEqual(t, len(got.AddressPool), 253)
		taken(v1alpha1.AnnotationAddressPool, got.AddressPool != "")
		require.NotRegexp(t, control, got.SharingKey)
		require.LessOrEqual(t, len([]rune(got.SharingKey)), 253)
		taken(v1alpha1.AnnotationSharingKey, got.SharingKey != "")
		if _, valid := translate.ParseIdleTimeout(got.IdleTimeout); got.IdleTimeout != "" {
			require.True(t, valid, got.IdleTimeout)
		}
		taken(v1alpha1.AnnotationIdleTimeout, got.IdleTimeout != "")
		if port != "" && !wrong[v1alpha1.AnnotationHealthCheckNodePort] {
			n, err := strconv.Atoi(port)
			require.NoError(t, err)
			require.EqualValues(t, n, got.HealthCheckNodePort)
		}
		require.True(t, got.HealthCheckNodePort >= 0 && got.HealthCheckNodePort <= 65535)
		require.True(t, got.AffinitySeconds >= 0 && got.AffinitySeconds <= 86400)
	})
}
