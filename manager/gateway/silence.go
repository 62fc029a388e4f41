package gateway

import (
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
)

// silent are the families whose addresses are announced to nobody, with the reason.
func (g *Gateway) silent(now time.Time) []v1alpha1.GatewaySilence {
	able := g.ownership.Able() && g.ownership.MayAnswer() && g.served
	return g.silence.Update(func(f ipam.Family) string { return g.silenceOf(f, now) }, able, now)
}

// silenceOf is why addresses of a family are announced to nobody.
func (g *Gateway) silenceOf(f ipam.Family, now time.Time) string {
	switch {
	case g.drain.NoticeOver(now):
		return "it drains, and answers for no address"
	case !g.ownership.MayAnswer():
		if g.options.Member != nil && g.options.Member.LastError() != nil {
			return "it may not answer for addresses: " + g.options.Member.LastError().Error()
		}
		return "it may not answer for addresses: it does not hold its Lease, or another gateway may have taken over"
	case !g.served:
		return (*g.unready.Load()).Error() // it begins to answer once the dataplane holds everything
	}
	return g.ownership.Silent(f)
}
