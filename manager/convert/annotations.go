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
	// longestWord and longestEntry are more characters than any annotation, and any entry of a list, has that can be read.
	longestWord  = 64
	longestEntry = 64
	// cutOff stands at the end of a text that goes on, and makes it one that cannot be read.
	cutOff = "…"
)

// asked are the annotations that are looked at, each with what is looked at of it: a tenant may write 16384 characters into each. Of what was asked so, the
// same is asked again, so that an object means the same before and after a cache has trimmed it.
func asked(annotations map[string]string) map[string]string {
	var out map[string]string
	for key, of := range lookedAt {
		value, has := annotations[key]
		if !has {
			continue
		}
		kept := of(value)
		if len(kept) < len(value) {
			kept = strings.Clone(kept) // a part of a text would keep the whole of it
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = kept
	}
	return out
}

// lookedAt are the annotations of a LoadBalancer that are looked at, and what is looked at of each.
var lookedAt = map[string]func(string) string{
	v1alpha1.AnnotationSourceRanges:        listOf(translate.MaxSourceRanges),
	v1alpha1.AnnotationIPFamilies:          listOf(oneOfEach),
	v1alpha1.AnnotationRequestedAddresses:  listOf(oneOfEach),
	v1alpha1.AnnotationIPFamilyPolicy:      wordOf(longestWord),
	v1alpha1.AnnotationForwarding:          wordOf(longestWord),
	v1alpha1.AnnotationProxyProtocol:       wordOf(longestWord),
	v1alpha1.AnnotationIdleTimeout:         wordOf(longestWord),
	v1alpha1.AnnotationAddressPool:         wordOf(translate.LongestName),
	v1alpha1.AnnotationSharingKey:          wordOf(translate.LongestName),
	v1alpha1.AnnotationHealthCheckNodePort: number,
	v1alpha1.AnnotationAffinityTimeout:     number,
}

func wordOf(most int) func(string) string {
	return func(value string) string { return cut(strings.TrimSpace(value), most) }
}

// listOf is a list, with one entry more than it may have at most.
func listOf(most int) func(string) string {
	return func(value string) string {
		parts := strings.SplitN(value, ",", most+2)
		parts = parts[:min(len(parts), most+1)]
		for i, part := range parts {
			parts[i] = cut(strings.TrimSpace(part), longestEntry)
		}
		return strings.Join(parts, ",")
	}
}

// number is a number, of which any number of zeros may stand in front.
func number(value string) string {
	if n, err := strconv.Atoi(value); err == nil && len(value) > longestWord {
		return strconv.Itoa(n)
	}
	return cut(value, longestWord)
}

// cut keeps so many characters of a text.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	n := 0
	for i := range text {
		if n == most {
			return text[:i] + cutOff
		}
		n++
	}
	return text
}

// annotations reads the annotation forms of fields that are not set.
type annotations struct {
	values map[string]string
	slips  []slip
}

// slip is an annotation that cannot be read.
type slip struct {
	key     string
	problem translate.Problem
	// firm: what it was before does not stand in for it, since more clients might be let in than are meant to.
	firm bool
}

func problemsOf(slips []slip) (problems []translate.Problem) {
	for _, s := range slips {
		problems = append(problems, s.problem)
	}
	return problems
}

func (a *annotations) refuse(key, format string, args ...any) {
	a.slips = append(a.slips, slip{key: key, problem: translate.Problem{Reason: translate.ReasonInvalidAnnotation, Field: "metadata.annotations." + key,
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
	a.slips = append(a.slips, slip{key: v1alpha1.AnnotationProxyProtocol, problem: translate.InvalidProxyProtocol("metadata.annotations."+v1alpha1.AnnotationProxyProtocol, value)})
	return ""
}

func (a *annotations) idleTimeout(field string) string {
	value := strings.TrimSpace(a.values[v1alpha1.AnnotationIdleTimeout])
	if field != "" || value == "" {
		return field
	}
	if _, valid := translate.IdleTimeout(value); !valid {
		a.slips = append(a.slips, slip{key: v1alpha1.AnnotationIdleTimeout, problem: translate.InvalidIdleTimeout("metadata.annotations."+v1alpha1.AnnotationIdleTimeout, value)})
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

// oneOfEach is how many entries there may be of which one family has one.
const oneOfEach = 2

// list has no more entries than the schema allows the field.
func (a *annotations) list(field []string, key string, most int) []string {
	if len(field) > 0 || strings.TrimSpace(a.values[key]) == "" {
		return field
	}
	if strings.Count(a.values[key], ",") >= most {
		a.refuse(key, "has more than %d entries: use %[1]d at most", most)
		return nil
	}
	var out []string
	for _, part := range strings.Split(a.values[key], ",") {
		out = append(out, strings.TrimSpace(part))
	}
	return out
}

// word is a text of which wrong tells what the schema would refuse in the field.
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

// ranges are networks. What stands in the field is checked by translation, by its place there.
func (a *annotations) ranges(field []string) []string {
	out := a.list(field, v1alpha1.AnnotationSourceRanges, translate.MaxSourceRanges)
	if len(field) > 0 {
		return out
	}
	for _, text := range out {
		if _, valid := translate.SourceRange(text); !valid {
			a.refuse(v1alpha1.AnnotationSourceRanges, "%q is not a CIDR such as 192.0.2.0/24", text)
			a.slips[len(a.slips)-1].firm = true
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
