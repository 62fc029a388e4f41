package convert

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// annotated returns LoadBalancers with these annotations: a new one, one that is served with other settings, and one whose fields have the same values.
func annotated(values map[string]string) map[string]*v1alpha1.LoadBalancer {
	of := func() *v1alpha1.LoadBalancer {
		lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "web", Annotations: values}}
		lb.Spec.Persistence = &v1alpha1.Persistence{}
		return lb.DeepCopy()
	}
	isNew, served, fields := of(), of(), of()
	served.Status.Addresses = []v1alpha1.AllocatedAddress{{Address: "203.0.113.5", Pool: "public"}}
	served.Status.Settings = map[string]string{v1alpha1.AnnotationForwarding: "direct", v1alpha1.AnnotationSourceRanges: "192.0.2.0/24"}
	fields.Spec.AddressPool, fields.Spec.SharingKey, fields.Spec.Forwarding, fields.Spec.LoadBalancerSourceRanges = "public", "web", "nat", []string{"192.0.2.0/24"}
	return map[string]*v1alpha1.LoadBalancer{"new": isNew, "served": served, "with fields": fields}
}

// requireTrimmedMeansTheSame requires that the object from a cache means the same as the object from the API server.
func requireTrimmedMeansTheSame(t *testing.T, values map[string]string) {
	t.Helper()
	for what, whole := range annotated(values) {
		trimmed := whole.DeepCopy()
		for range 2 { // a cache may trim an object twice
			_, err := trim(trimmed)
			require.NoError(t, err)
			require.Equal(t, LoadBalancer(whole), LoadBalancer(trimmed), "%s: %q", what, values)
			require.Equal(t, Settings(whole), Settings(trimmed), "%s: %q", what, values)
		}
		written, err := json.Marshal(Settings(trimmed))
		require.NoError(t, err)
		var read map[string]string
		require.NoError(t, json.Unmarshal(written, &read))
		require.Equal(t, Settings(trimmed), read, "%s: %q: a status is written once", what, values)
		requireSameMeaning(t, whole, values, trimAnnotations(values))
	}
}

// requireSameMeaning requires that both have the same meaning, and the same invalid annotations.
func requireSameMeaning(t *testing.T, lb *v1alpha1.LoadBalancer, these, those map[string]string) {
	t.Helper()
	read := func(values map[string]string) (translate.LoadBalancer, []string) {
		out, slips := interpret(lb, values)
		var wrong []string
		for _, s := range slips {
			wrong = append(wrong, s.key+" "+s.problem.Reason)
		}
		return out, wrong
	}
	want, wrong := read(these)
	got, wrongToo := read(those)
	require.Equal(t, want, got, "%q", these)
	require.Equal(t, wrong, wrongToo, "%q", these)
}

func TestATrimmedAnnotationMeansTheSame(t *testing.T) {
	blanks := strings.Repeat(" ", 1100)
	for key, values := range map[string][]string{
		v1alpha1.AnnotationHealthCheckNodePort: {blanks[:100] + "80", strings.Repeat("0", 100) + "80", "80" + blanks, "+" + strings.Repeat("0", 100) + "80", strings.Repeat("0", 100) + "99999", strings.Repeat("9", 100)},
		v1alpha1.AnnotationRequestedAddresses:  {"192.0.2.1," + blanks + "2001:db8::1", "192.0.2.1,fe80::1%" + strings.Repeat("e", 100), strings.Repeat(",", 2000), blanks + "," + blanks},
		v1alpha1.AnnotationSharingKey:          {strings.Repeat("k", 253) + " k", strings.Repeat("k", 253) + blanks, strings.Repeat("\U0001f600", 253), strings.Repeat("\U0001f600", 254), strings.Repeat("a\x00", 40)},
		v1alpha1.AnnotationAddressPool:         {"x" + strings.Repeat("ä", 600), strings.Repeat("ä", 200), strings.Repeat("p", 253)},
		v1alpha1.AnnotationSourceRanges:        {strings.Repeat("192.0.2.0/24,"+blanks, 128) + "192.0.2.0/24", strings.Repeat(blanks+"2001:0db8:1111:2222:3333:4444:5555:6666/128,", 127) + "192.0.2.0/24", strings.Repeat("ä", 8000)},
		v1alpha1.AnnotationForwarding:          {blanks + "direct" + blanks, "direct" + blanks + "x", "…"},
	} {
		for _, value := range values {
			requireTrimmedMeansTheSame(t, map[string]string{key: value})
		}
	}
}

func TestTrimmedAnnotationsOfAnyTextMeanTheSame(t *testing.T) {
	pieces := []string{"192.0.2.0/24", "2001:db8::/32", "203.0.113.5", "fe80::1%e", "IPv4", "IPv6", "RequireDualStack", "direct", "v2", "80", "9", "0", "+", "-", "x", "ä", "\U0001f600", "…", ",", ",", " ", "\t", "\u0085", "\x00"}
	random := rand.New(rand.NewPCG(1, 1))
	text := func() string {
		var b strings.Builder
		for range random.IntN(5) {
			times := []int{1, 1, 1, 2, 62, 63, 64, 65, 66, 127, 129, 252, 253, 254, 1100}[random.IntN(15)]
			b.WriteString(strings.Repeat(pieces[random.IntN(len(pieces))], times))
		}
		return b.String()
	}
	for range 500 {
		values := map[string]string{}
		for key := range readAnnotations {
			if random.IntN(3) == 0 {
				values[key] = text()
			}
		}
		requireTrimmedMeansTheSame(t, values)
	}
}

// Whatever text an annotation has, a cache keeps its meaning, and only a part of a long text.
func FuzzWhatACacheKeepsOfAnnotations(f *testing.F) {
	for _, seed := range []string{"", strings.Repeat(" ", 100) + "80", strings.Repeat("0", 100) + "80", "192.0.2.1," + strings.Repeat(" ", 1100) + "2001:db8::1", "x" + strings.Repeat("ä", 600), strings.Repeat(",", 200), "direct", "v2", "IPv4,IPv6", "\xff\xc3"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		value = strings.ToValidUTF8(value, "\ufffd") // like all texts from the API server
		all := map[string]string{}
		for key := range readAnnotations {
			all[key] = value
			requireTrimmedMeansTheSame(t, map[string]string{key: value})
			most := 4*translate.MaxNameLength + len(cutOff)
			if key == v1alpha1.AnnotationSourceRanges {
				most = (translate.MaxSourceRanges + 1) * (4*longestEntry + len(cutOff) + 1)
			}
			require.LessOrEqual(t, len(trimAnnotations(all)[key]), most)
		}
		requireTrimmedMeansTheSame(t, all)
	})
}
