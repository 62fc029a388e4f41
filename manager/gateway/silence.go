package gateway

import (
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
)

// silent returns the families whose addresses are announced to nobody, with the reason.
func (g *Gateway) silent(now time.Time) []v1alpha1.GatewaySilence {
	able := g.ownership.CanAnnounce() && g.ownership.MayAnswer() && g.served
	return g.silence.Update(func(f ipam.Family) string { return g.silenceOf(f, now) }, able, now)
}

// silenceOf returns why addresses of a family are announced to nobody.
func (g *Gateway) silenceOf(f ipam.Family, now time.Time) string {
	switch {
	case g.drain.WithdrawDelayOver(now):
		return "the gateway drains, and answers for no address"
	case !g.ownership.MayAnswer():
		if g.options.Member != nil && g.options.Member.LastError() != nil {
			return "the gateway may not answer for addresses: " + g.options.Member.LastError().Error()
		}
		return "the gateway may not answer for addresses: it has no Lease, or another gateway may have taken its addresses over"
	case !g.served:
		return (*g.unready.Load()).Error() // it answers once the dataplane holds everything
	}
	return g.ownership.SilentReason(f)
}
