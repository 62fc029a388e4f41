package gateway

import (
	"context"
	"net/netip"
	"time"
)

// applyRedirects sends the dataplane the redirects that have changed, before anything is claimed by them.
func (g *Gateway) applyRedirects(ctx context.Context) {
	a := &g.answering
	a.pending.Add(a.redirects.Update(a.member.Others(), a.answers, time.Now())...)
	switch {
	case !g.driver.Running():
		a.pending.Clear() // a plugin that does not run is sent all of it later
	case a.pending.Empty() || g.driver.Calling() != nil:
		// A plugin that is called is sent it after its answer.
	default:
		g.driver.SendRedirects(ctx, a.pending.Begin())
		a.pending.End()
	}
}

// redirectPatience is for how long an address is not claimed because the dataplane does not have its redirect yet.
const redirectPatience = 10 * time.Second

// awaitsRedirect tells whether an address is not to be claimed yet, since the dataplane is about to get its redirect.
func (g *Gateway) awaitsRedirect(address netip.Addr) bool {
	c := g.driver.Calling()
	return g.answering.pending.Has(address) && c != nil && time.Since(c.Began) < redirectPatience
}
