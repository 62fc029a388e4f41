package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"kubelb.k8c.io/core/phrase"
)

// Bounds of the hub's schema on lists of targets. It refuses the whole list for one entry that it does not take.
const (
	MaxTargets = 5000
	// MaxNames bounds the characters of all host names of an Addresses object, MaxOwnNames those of a list in a LoadBalancer.
	MaxNames    = 65536
	MaxOwnNames = 16384
	longestHost = 253
)

// Unlistable says why the hub's schema refuses a list with this target. It is empty if the schema takes the target.
func Unlistable(a Address) string {
	if a.IP == "" {
		return unlistableName(a.Hostname)
	}
	address, err := netip.ParseAddr(a.IP)
	switch {
	case err != nil:
		return fmt.Sprintf("%q is no IP address", a.IP)
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
		return "it has neither an address nor a name"
	case len(name) > longestHost:
		return fmt.Sprintf("a host name of %d characters is longer than %d", len(name), longestHost)
	case strings.IndexFunc(name, func(r rune) bool { return !inside(r) }) >= 0:
		return fmt.Sprintf("%q is no host name", name)
	}
	return ""
}

// Listed sorts targets and removes duplicates. It keeps as many as the hub takes: MaxTargets, and host names of so many characters together. beyond is how
// many targets it does not keep.
func Listed(list []Address, names int) (kept []Address, beyond int) {
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

// LeftOut is what a Service is told of targets that the hub is not told of.
func LeftOut(left []string) Problem {
	return Problem{Reason: ReasonNodesLeftOut, Partial: true, Message: "left out of the targets: " + phrase.Few(left, "; ")}
}
