package convert

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
)

const (
	// longestWord and longestEntry are longer than any valid annotation, and any valid entry of a list.
	longestWord  = 64
	longestEntry = 64
	// cutOff is at the end of a cut text, and makes it invalid.
	cutOff = "…"
)

// trimAnnotations returns the annotations that are read, each cut to the part that counts: a tenant may write 16384 characters into each. The result does not
// change if it is trimmed again, so that an object means the same before and after a cache has trimmed it.
func trimAnnotations(annotations map[string]string) map[string]string {
	var out map[string]string
	for key, of := range readAnnotations {
		value, has := annotations[key]
		if !has {
			continue
		}
		kept := of(value)
		if len(kept) < len(value) {
			kept = strings.Clone(kept) // a substring would keep the whole text in memory
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = kept
	}
	return out
}

// readAnnotations are the annotations of a LoadBalancer that are read, with a function that cuts each to the part that counts.
var readAnnotations = map[string]func(string) string{
	v1alpha1.AnnotationSourceRanges:        listOf(translate.MaxSourceRanges),
	v1alpha1.AnnotationIPFamilies:          listOf(oneOfEach),
	v1alpha1.AnnotationRequestedAddresses:  listOf(oneOfEach),
	v1alpha1.AnnotationIPFamilyPolicy:      wordOf(longestWord),
	v1alpha1.AnnotationForwarding:          wordOf(longestWord),
	v1alpha1.AnnotationProxyProtocol:       wordOf(longestWord),
	v1alpha1.AnnotationIdleTimeout:         wordOf(longestWord),
	v1alpha1.AnnotationAddressPool:         wordOf(translate.MaxNameLength),
	v1alpha1.AnnotationSharingKey:          wordOf(translate.MaxNameLength),
	v1alpha1.AnnotationHealthCheckNodePort: number,
	v1alpha1.AnnotationAffinityTimeout:     number,
}

func wordOf(limit int) func(string) string {
	return func(value string) string { return cut(strings.TrimSpace(value), limit) }
}

// listOf keeps one entry more of a list than the limit.
func listOf(limit int) func(string) string {
	return func(value string) string {
		parts := strings.SplitN(value, ",", limit+2)
		parts = parts[:min(len(parts), limit+1)]
		for i, part := range parts {
			parts[i] = cut(strings.TrimSpace(part), longestEntry)
		}
		return strings.Join(parts, ",")
	}
}

// number keeps a number, which may have any number of leading zeros.
func number(value string) string {
	if n, err := strconv.Atoi(value); err == nil && len(value) > longestWord {
		return strconv.Itoa(n)
	}
	return cut(value, longestWord)
}

// cut cuts a text to a number of characters.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	n := 0
	for i := range text {
		if n == limit {
			return text[:i] + cutOff
		}
		n++
	}
	return text
}

// annotations reads annotations in place of fields that are not set.
type annotations struct {
	values  map[string]string
	invalid []invalidAnnotation
}

// invalidAnnotation is an invalid annotation.
type invalidAnnotation struct {
	key     string
	problem translate.Problem
	// strict: its last valid value is not used, since that might allow more clients than intended.
	strict bool
}

func problemsOf(invalid []invalidAnnotation) (problems []translate.Problem) {
	for _, s := range invalid {
		problems = append(problems, s.problem)
	}
	return problems
}

func (a *annotations) refuse(key, format string, args ...any) {
	a.invalid = append(a.invalid, invalidAnnotation{key: key, problem: translate.Problem{Reason: translate.ReasonInvalidAnnotation, Field: "metadata.annotations." + key,
		Message: "annotation " + key + ": " + fmt.Sprintf(format, args...)}})
}

func (a *annotations) proxyProtocol(field string) string {
	value := strings.TrimSpace(a.values[v1alpha1.AnnotationProxyProtocol])
	switch {
	case field != "":
		return field
	case value == "" || value == translate.ProxyProtocolV2:
		return value
	}
	a.invalid = append(a.invalid, invalidAnnotation{key: v1alpha1.AnnotationProxyProtocol, problem: translate.InvalidProxyProtocol("metadata.annotations."+v1alpha1.AnnotationProxyProtocol, value)})
	return ""
}

func (a *annotations) idleTimeout(field string) string {
	value := strings.TrimSpace(a.values[v1alpha1.AnnotationIdleTimeout])
	if field != "" || value == "" {
		return field
	}
	if _, valid := translate.ParseIdleTimeout(value); !valid {
		a.invalid = append(a.invalid, invalidAnnotation{key: v1alpha1.AnnotationIdleTimeout, problem: translate.InvalidIdleTimeout("metadata.annotations."+v1alpha1.AnnotationIdleTimeout, value)})
		return ""
	}
	return value
}

func (a *annotations) text(field, key string) string {
	if field != "" {
		return field
	}
	value := strings.TrimSpace(a.values[key])
	allowed := map[string][]string{
		v1alpha1.AnnotationIPFamilyPolicy: {"SingleStack", "PreferDualStack", "RequireDualStack"},
		v1alpha1.AnnotationForwarding:     {"nat", "transparent", "direct"},
	}[key]
	for _, word := range allowed {
		if value == word {
			return value
		}
	}
	if value != "" {
		a.refuse(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
	return ""
}

// oneOfEach is the limit of a list with one entry of each family.
const oneOfEach = 2

// list returns the entries of a list, or refuses a list with more entries than the schema allows for the field.
func (a *annotations) list(field []string, key string, limit int) []string {
	if len(field) > 0 || strings.TrimSpace(a.values[key]) == "" {
		return field
	}
	if strings.Count(a.values[key], ",") >= limit {
		a.refuse(key, "has more than %d entries: use %[1]d at most", limit)
		return nil
	}
	var out []string
	for _, part := range strings.Split(a.values[key], ",") {
		out = append(out, strings.TrimSpace(part))
	}
	return out
}

// word returns a text. wrong returns why the schema would refuse the text in the field.
func (a *annotations) word(field, key string, wrong func(string) string) string {
	value := strings.TrimSpace(a.values[key])
	if field != "" || value == "" {
		return field
	}
	if message := wrong(value); message != "" {
		a.refuse(key, "%s", message)
		return ""
	}
	return value
}

// ranges returns networks. Translation checks those in the field.
func (a *annotations) ranges(field []string) []string {
	out := a.list(field, v1alpha1.AnnotationSourceRanges, translate.MaxSourceRanges)
	if len(field) > 0 {
		return out
	}
	for _, text := range out {
		if _, valid := translate.ParseSourceRange(text); !valid {
			a.refuse(v1alpha1.AnnotationSourceRanges, "%q is not a CIDR such as 192.0.2.0/24", text)
			a.invalid[len(a.invalid)-1].strict = true
			return nil
		}
	}
	return out
}

func (a *annotations) number(field int, key string, highest int) int {
	if field != 0 || a.values[key] == "" {
		return field
	}
	n, err := strconv.Atoi(a.values[key])
	if err != nil || n < 1 || n > highest {
		a.refuse(key, "%q is not a number from 1 to %d", a.values[key], highest)
		return 0
	}
	return n
}

func (a *annotations) family(text string) ipam.Family {
	switch text {
	case "IPv4":
		return ipam.IPv4
	case "IPv6":
		return ipam.IPv6
	}
	a.refuse(v1alpha1.AnnotationIPFamilies, "%q is neither IPv4 nor IPv6", text)
	return ipam.IPv4
}

func (a *annotations) address(text string) netip.Addr {
	address, err := netip.ParseAddr(text)
	if err != nil || address.Zone() != "" {
		a.refuse(v1alpha1.AnnotationRequestedAddresses, "%q is not an IP address", text)
		return netip.IPv4Unspecified()
	}
	return address.Unmap()
}
