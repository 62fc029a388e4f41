package membership

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// What a gateway publishes costs its peers something: they evaluate its candidates for each address, probe its addresses, and send packets to them.
// So there are bounds, far above what gateways need.
const (
	maxCandidates        = 1000
	maxRedirectAddresses = 64
	maxNameLength        = 253 // RFC 1123
	maxDigestBytes       = 256
	maxAnnotationBytes   = 1 << 20
)

// MaxDuration bounds the duration of a Lease. Peers do not wait any longer: nobody would answer for the addresses of a failed gateway.
const MaxDuration = 10 * time.Minute

// parsePublished parses what a peer publishes. If something is invalid, it returns nothing of it. It drops addresses at which no gateway can be.
func parsePublished(text string) (Published, error) {
	if len(text) > maxAnnotationBytes {
		return Published{}, fmt.Errorf("annotation %s: %d bytes, at most %d are read", viewAnnotation, len(text), maxAnnotationBytes)
	}
	var p Published
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return Published{}, fmt.Errorf("annotation %s: %w", viewAnnotation, err)
	}
	if err := p.validate(); err != nil {
		return Published{}, fmt.Errorf("annotation %s: %w", viewAnnotation, err)
	}
	p.RedirectAddresses = slices.DeleteFunc(p.RedirectAddresses, func(a netip.Addr) bool { return !isSegmentAddress(a) })
	p.RedirectAddresses = p.RedirectAddresses[:min(len(p.RedirectAddresses), maxRedirectAddresses)]
	return p, nil
}

func (p Published) validate() error {
	switch {
	case max(len(p.Candidates), len(p.WithoutIPv4), len(p.WithoutIPv6)) > maxCandidates:
		return fmt.Errorf("candidates: %d names, at most %d are allowed", max(len(p.Candidates), len(p.WithoutIPv4), len(p.WithoutIPv6)), maxCandidates)
	case slices.ContainsFunc(slices.Concat(p.Candidates, p.WithoutIPv4, p.WithoutIPv6), func(name string) bool { return name == "" || len(name) > maxNameLength }):
		return fmt.Errorf("candidates: a name has 1 to %d characters", maxNameLength)
	case len(p.Configuration) > maxDigestBytes:
		return fmt.Errorf("configuration: %d bytes, at most %d are allowed", len(p.Configuration), maxDigestBytes)
	}
	return nil
}

// isSegmentAddress reports whether the address may be a gateway's own address on a segment.
func isSegmentAddress(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == ""
}
