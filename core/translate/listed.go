package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"kubelb.k8c.io/core/phrase"
)

// Bounds of the hub's schema on lists of targets. The schema refuses the whole list because of one invalid entry.
const (
	MaxTargets = 5000
	// MaxHostnameCharacters bounds the characters of all host names of an Addresses object, MaxOwnHostnameCharacters those in a list of a LoadBalancer.
	MaxHostnameCharacters    = 65536
	MaxOwnHostnameCharacters = 16384
	longestHost              = 253
)

// ValidateListEntry returns why the hub's schema refuses a list with this target, or "" if it does not.
func ValidateListEntry(a Address) string {
	if a.IP == "" {
		return unlistableName(a.Hostname)
	}
	address, err := netip.ParseAddr(a.IP)
	switch {
	case err != nil:
		return fmt.Sprintf("%q is not an IP address", a.IP)
	case address.Zone() != "":
		return a.IP + " has a zone"
	case address.IsGlobalUnicast():
		return ""
	case address.IsLinkLocalUnicast():
		return a.IP + " is a link-local address"
	case address.IsLoopback():
		return a.IP + " is a loopback address"
	case address.IsUnspecified():
		return a.IP + " is the unspecified address"
	}
	return a.IP + " is a multicast or broadcast address"
}

func unlistableName(name string) string {
	inside := func(r rune) bool { return isAlphanumeric(r) || strings.ContainsRune("-*_.:", r) }
	switch {
	case name == "":
		return "a target has neither an address nor a host name"
	case len(name) > longestHost:
		return fmt.Sprintf("a host name of %d characters is longer than %d", len(name), longestHost)
	case strings.IndexFunc(name, func(r rune) bool { return !inside(r) }) >= 0:
		return fmt.Sprintf("%q is not a host name", name)
	}
	return ""
}

// LimitTargets sorts targets and removes duplicates. It keeps as many as the hub's schema allows: MaxTargets, and host names of so many characters together.
// beyond is the number of targets that it does not keep.
func LimitTargets(list []Address, names int) (kept []Address, beyond int) {
	kept = slices.Clone(list)
	slices.SortFunc(kept, compareAddresses)
	kept = slices.Compact(kept)
	all, characters := len(kept), 0
	kept = slices.DeleteFunc(kept, func(a Address) bool {
		if a.IP == "" {
			characters += len(a.Hostname)
		}
		return a.IP == "" && characters > names
	})
	kept = kept[:min(len(kept), MaxTargets)]
	return kept, all - len(kept)
}

// NodesLeftOut returns the problem of a Service whose targets are partly not sent to the hub.
func NodesLeftOut(left []string) Problem {
	return Problem{Reason: ReasonNodesLeftOut, Partial: true, Message: "left out of the targets: " + phrase.Few(left, "; ")}
}
