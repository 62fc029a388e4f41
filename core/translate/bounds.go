package translate

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxPorts and MaxSourceRanges bound what one LoadBalancer costs a gateway. The hub's schema has the same bounds for fields. It does not check
// annotations.
const (
	MaxPorts        = 256
	MaxSourceRanges = 128
)

func tooManyPorts(n int) (Problem, bool) {
	return Problem{Reason: ReasonTooManyPorts, Field: "spec.ports",
		Message: fmt.Sprintf("spec.ports has %d ports: use %d at most, and another Service for the others", n, MaxPorts)}, n > MaxPorts
}

func tooManySourceRanges(field string, ranges []string) (Problem, bool) {
	return Problem{Reason: ReasonTooManySourceRanges, Field: field,
		Message: fmt.Sprintf("%s has %d networks: use %d at most, for example larger ones that contain these", field, len(ranges), MaxSourceRanges)}, len(ranges) > MaxSourceRanges
}

// MaxNameLength is the maximum length of an AddressPool's name and of a sharing key.
const MaxNameLength = 253

// ValidatePoolName returns what is wrong with a text as the name of an AddressPool, or "". The hub's schema has the same rules for the field.
func ValidatePoolName(text string) string {
	inside := func(r rune) bool { return isAlphanumeric(r) || strings.ContainsRune("-_.", r) }
	switch {
	case text == "":
		return ""
	case len(text) > MaxNameLength:
		return fmt.Sprintf("has more than %d characters, the maximum for the name of an AddressPool", MaxNameLength)
	case strings.IndexFunc(text, func(r rune) bool { return !inside(r) }) >= 0 || !isAlphanumeric(rune(text[0])) || !isAlphanumeric(rune(text[len(text)-1])):
		return fmt.Sprintf("%q is not a name of an AddressPool: use letters and digits, and - _ . between them", text)
	}
	return ""
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// ValidateSharingKey returns what is wrong with a text as a sharing key, or "". The hub's schema has the same rules for the field.
func ValidateSharingKey(text string) string {
	switch {
	case utf8.RuneCountInString(text) > MaxNameLength:
		return fmt.Sprintf("has more than %d characters, the maximum for a sharing key", MaxNameLength)
	case strings.IndexFunc(text, unicode.IsControl) >= 0:
		return fmt.Sprintf("%q has control characters: remove them", text)
	}
	return ""
}

// SourceRange parses a network of clients.
func ParseSourceRange(text string) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
	return prefix, err == nil && !prefix.Addr().Is4In6()
}
