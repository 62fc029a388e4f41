package report

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
)

// SilentAfter is how long a gateway that announces nothing at all may be about to begin, or to begin again, as while its process starts.
const SilentAfter = 10 * time.Second

// Silence is which families the gateway announces to nobody, and since when.
type Silence struct {
	since map[ipam.Family]time.Time
	next  time.Time
}

// Update returns the families whose addresses are announced to nobody, with the reason: because is the reason now, empty for none. While one family is
// announced the other one is known at once. While none is able to be, that may be about to change.
func (s *Silence) Update(because func(ipam.Family) string, able bool, now time.Time) (out []v1alpha1.GatewaySilence) {
	if s.since == nil {
		s.since = map[ipam.Family]time.Time{}
	}
	s.next = time.Time{}
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		why := because(f)
		if why == "" {
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
		out = append(out, v1alpha1.GatewaySilence{Family: corev1.IPFamily(f.String()), Message: plain.Message(why, 1024)})
	}
	return out
}

// Next is when Update is to be called again, zero for not before something changes.
func (s *Silence) Next() time.Time { return s.next }
