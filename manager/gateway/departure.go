package gateway

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/membership"
)

// departure is how a gateway goes that is told to end. What it waits for are connections that its dataplane's processes have, where those
// end with the manager, as in a pod. What the kernel forwards goes on.
type departure struct {
	// told: it was told to end. Other goroutines ask.
	told atomic.Bool
	// begun: it lets go of its addresses, and waits. left is how many connections there were at the last look, idle how many looks in a row
	// there was none. done is told when there is nothing to wait for any more.
	begun bool
	left  uint64
	idle  int
	done  chan struct{}
}

const (
	// leftEvery is how often a gateway that departs looks for connections that are left.
	leftEvery = 500 * time.Millisecond
	// idleLooks is how many looks in a row it takes to see none: clients may hear late of who has taken over.
	idleLooks = 3
)

// Depart has the gateway leave in good order before it ends: others take over, and then it waits for the connections that would end with it,
// for DrainTimeout at most. It waits for nothing where nobody takes over, and before it has served.
func (g *Gateway) Depart(ctx context.Context) {
	g.departure.told.Store(true)
	if g.options.DrainTimeout == 0 || g.Ready(nil) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, g.options.DrainTimeout)
	defer cancel()
	g.send(ctx, func(g *Gateway) { g.departure.begun = true })
	select {
	case <-g.departure.done:
	case <-ctx.Done():
		g.log.Warn("ends, though connections may be left: clients had all the time that they get", "drain-timeout", g.options.DrainTimeout)
	}
}

// note takes over how many connections are left.
func (d *departure) note(answers bool, left uint64, log *slog.Logger) {
	if !d.begun {
		return
	}
	if d.idle++; answers || left > 0 {
		d.idle = 0
	}
	if left != d.left {
		log.Info("waits for connections to end", "left", left)
	}
	d.left = left
}

// seeOff lets the gateway end that departs and need not wait any longer.
func (g *Gateway) seeOff() {
	if !g.departure.begun || g.departure.idle < idleLooks && g.isReplaced() {
		return
	}
	select {
	case g.departure.done <- struct{}{}:
	default:
	}
}

// isReplaced tells whether others that stay, and work, may answer for each address that is held. Of a family of which nobody hears from this gateway,
// nobody needs to hear from others.
func (g *Gateway) isReplaced() bool {
	if g.answering.member == nil {
		return false
	}
	var staying []membership.Other
	for _, o := range g.answering.member.Others() {
		if o.Present && !o.Leaving && o.Serves {
			staying = append(staying, o)
		}
	}
	unheard := map[ipam.Family]bool{ipam.IPv4: g.isUnheard(ipam.IPv4), ipam.IPv6: g.isUnheard(ipam.IPv6)}
	for address := range g.answering.answers {
		family, serves := ipam.FamilyOf(address), orAll(g.selection.ServingAddress(address))
		takesOver := func(o membership.Other) bool { return serves(o.Name) && (unheard[family] || !o.Unheard.Of(family)) }
		if !slices.ContainsFunc(staying, takesOver) {
			return false
		}
	}
	return len(staying) > 0
}
