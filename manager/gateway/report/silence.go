package report

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
)

// SilentAfter is the time for which a gateway that announces nothing at all may be about to start or restart.
const SilentAfter = 10 * time.Second

// SilenceTracker knows which families the gateway announces to nobody, and since when.
type SilenceTracker struct {
	since map[ipam.Family]time.Time
	next  time.Time
}

// Update returns the families whose addresses are announced to nobody, with the reason. reasonFor returns the present reason, empty for none. While a
// family is announced, the silence of the other one counts at once. While none can be announced, this may be about to change.
func (s *SilenceTracker) Update(reasonFor func(ipam.Family) string, able bool, now time.Time) (out []v1alpha1.GatewaySilence) {
	if s.since == nil {
		s.since = map[ipam.Family]time.Time{}
	}
	s.next = time.Time{}
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		reason := reasonFor(f)
		if reason == "" {
			delete(s.since, f)
			continue
		}
		if s.since[f].IsZero() {
			s.since[f] = now
		}
		if from := s.since[f].Add(SilentAfter); !able && now.Before(from) {
			s.next = from
			continue
		}
		out = append(out, v1alpha1.GatewaySilence{Family: corev1.IPFamily(f.String()), Message: plain.Message(reason, 1024)})
	}
	return out
}

// Next returns when Update is to be called again, zero if only after a change.
func (s *SilenceTracker) Next() time.Time { return s.next }
