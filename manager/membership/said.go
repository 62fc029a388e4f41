package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// What one gateway says costs all others: they weigh its candidates for each address, ask its addresses whether they are there, and send
// them packets. So there are bounds, far above what gateways have.
const (
	mostCandidates    = 1000
	mostReached       = 64
	longestName       = 253 // RFC 1123
	longestDigest     = 256
	longestAnnotation = 1 << 20
)

// LongestDuration is how long a lease lasts at most. Others heed no longer one: the addresses of a gateway that is gone would stay without an
// answer.
const LongestDuration = 10 * time.Minute

// readSaid reads what another gateway says of itself. Nothing is known of one that says what no gateway does. Addresses at which no packet
// can be brought to it are left out.
func readSaid(text string) (Said, error) {
	if len(text) > longestAnnotation {
		return Said{}, fmt.Errorf("annotation %s: %d bytes, at most %d are read", annotation, len(text), longestAnnotation)
	}
	var s Said
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return Said{}, fmt.Errorf("annotation %s: %w", annotation, err)
	}
	if err := s.bounded(); err != nil {
		return Said{}, fmt.Errorf("annotation %s: %w", annotation, err)
	}
	s.Reached = slices.DeleteFunc(s.Reached, func(a netip.Addr) bool { return !reachable(a) })
	s.Reached = s.Reached[:min(len(s.Reached), mostReached)]
	return s, nil
}

func (s Said) bounded() error {
	switch {
	case max(len(s.Candidates), len(s.WithoutIPv4), len(s.WithoutIPv6)) > mostCandidates:
		return fmt.Errorf("candidates: %d, at most %d are heeded", max(len(s.Candidates), len(s.WithoutIPv4), len(s.WithoutIPv6)), mostCandidates)
	case slices.ContainsFunc(slices.Concat(s.Candidates, s.WithoutIPv4, s.WithoutIPv6), func(name string) bool { return name == "" || len(name) > longestName }):
		return fmt.Errorf("candidates: a name has 1 to %d characters", longestName)
	case len(s.Configuration) > longestDigest:
		return errors.New("configuration: it is no digest")
	}
	return nil
}

// reachable tells whether the address may be a gateway's on a segment.
func reachable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == ""
}
