package translate

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxPorts and MaxSourceRanges bound one LoadBalancer, and with both what it costs a gateway. The hub's schema has the same bounds for what
// stands in fields; what stands in annotations it does not look at.
const (
	MaxPorts        = 256
	MaxSourceRanges = 128
)

func tooManyPorts(n int) (Problem, bool) {
	return Problem{Reason: ReasonTooManyPorts, Field: "spec.ports",
		Message: fmt.Sprintf("spec.ports has %d ports: use %d at most, and another Service for others", n, MaxPorts)}, n > MaxPorts
}

func tooManySourceRanges(field string, ranges []string) (Problem, bool) {
	return Problem{Reason: ReasonTooManySourceRanges, Field: field,
		Message: fmt.Sprintf("%s has %d networks: use %d at most, such as larger ones that these lie in", field, len(ranges), MaxSourceRanges)}, len(ranges) > MaxSourceRanges
}

// LongestName is how long the name of an AddressPool, and a sharing key, may be.
const LongestName = 253

// PoolName says what is wrong with a text as the name of an AddressPool; it is empty where nothing is. The hub's schema says the same of the
// field.
func PoolName(text string) string {
	inside := func(r rune) bool { return isAlphanumeric(r) || strings.ContainsRune("-_.", r) }
	switch {
	case text == "":
		return ""
	case len(text) > LongestName:
		return fmt.Sprintf("has more than %d characters, and an AddressPool's name has no more", LongestName)
	case strings.IndexFunc(text, func(r rune) bool { return !inside(r) }) >= 0 || !isAlphanumeric(rune(text[0])) || !isAlphanumeric(rune(text[len(text)-1])):
		return fmt.Sprintf("%q is no name of an AddressPool: use letters, digits, and - _ . within", text)
	}
	return ""
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// SharingKey says what is wrong with a text as a sharing key; it is empty where nothing is. The hub's schema says the same of the field.
func SharingKey(text string) string {
	switch {
	case utf8.RuneCountInString(text) > LongestName:
		return fmt.Sprintf("has more than %d characters, and a sharing key has no more", LongestName)
	case strings.IndexFunc(text, unicode.IsControl) >= 0:
		return fmt.Sprintf("%q has control characters in it: remove them", text)
	}
	return ""
}

// SourceRange reads a network of clients.
func SourceRange(text string) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
	return prefix, err == nil && !prefix.Addr().Is4In6()
}
