package gateway

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
)

// silentAfter is how long a gateway of which nobody hears at all may be about to begin, or to begin again, as while its process starts.
const silentAfter = 10 * time.Second

// silence is of which families nobody hears from this gateway, and since when.
type silence struct {
	since map[ipam.Family]time.Time
	// next is when to look again, zero for not before something changes.
	next time.Time
}

// silent are the families of whose addresses nobody hears, with the reason. While one family is heard of it is known of the other one; while none is,
// that may be about to change.
func (g *Gateway) silent(now time.Time) (out []v1alpha1.GatewaySilence) {
	g.silence.next = time.Time{}
	able := g.answering.announcer.Able() && g.MayAnswer() && g.served
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		why := g.silenceOf(f, now)
		if why == "" {
			delete(g.silence.since, f)
			continue
		}
		if g.silence.since[f].IsZero() {
			g.silence.since[f] = now
		}
		if from := g.silence.since[f].Add(silentAfter); !able && now.Before(from) {
			g.silence.next = from
			continue
		}
		out = append(out, v1alpha1.GatewaySilence{Family: corev1.IPFamily(f.String()), Message: plain.Message(why, 1024)})
	}
	return out
}

// silenceOf is why nobody hears of addresses of a family.
func (g *Gateway) silenceOf(f ipam.Family, now time.Time) string {
	switch {
	case g.drain.Over(now):
		return "it drains, and answers for no address"
	case !g.MayAnswer():
		if g.options.Member != nil && g.options.Member.Trouble() != nil {
			return "it may not answer for addresses: " + g.options.Member.Trouble().Error()
		}
		return "it may not answer for addresses: it does not hold its Lease, or another gateway may have taken over"
	case !g.served:
		return (*g.unready.Load()).Error() // it begins to answer once the dataplane holds everything
	}
	return g.unheardBecause(f)
}

// unheardBecause is why no router or host would hear of addresses of a family, empty if one would, or it is not known yet.
func (g *Gateway) unheardBecause(f ipam.Family) string {
	if g.routers != nil {
		return g.routers.silent(f)
	}
	return g.answering.announcer.Silent(f)
}

func (g *Gateway) isUnheard(f ipam.Family) bool { return g.unheardBecause(f) != "" }
