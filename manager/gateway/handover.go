package gateway

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/membership"
)

// handover is whom this gateway asks about connections that it does not know, where one gateway answers for each address: the one that has
// answered before, for a while, as long as it works. That one asks whom it has taken the address over from, and so on.
type handover struct {
	limit time.Duration
	// holders are the gateways that answer for an address, as this one has seen it last; formers are those that this one has taken
	// addresses over from, and until when they are asked.
	holders map[netip.Addr]string
	formers map[netip.Addr]former
}

type former struct {
	name  string
	until time.Time
	// at is where it is reached, in the address's family; it changes as the gateway says.
	at netip.Addr
}

// asksOfFormers is how many gateways are asked, one after another: an address that moves more often within a while is rare, and two that
// have it from one another would not find an end.
const asksOfFormers = 3

func newHandover(limit time.Duration) handover {
	return handover{limit: limit, holders: map[netip.Addr]string{}, formers: map[netip.Addr]former{}}
}

// take notes who answers for an address now. Where it is this gateway, and was another one, that one is asked.
func (h *handover) take(address netip.Addr, holder, self string, now time.Time) {
	before := h.holders[address]
	if holder == before {
		return
	}
	h.holders[address] = holder
	if holder == self && before != "" {
		h.formers[address] = former{name: before, until: now.Add(h.limit)}
	}
}

// of is whom this gateway asks about connections to the address.
func (h *handover) of(address netip.Addr) model.Handover {
	at := h.formers[address].at
	if !at.IsValid() {
		return model.Handover{}
	}
	return model.Handover{Next: at, Asks: asksOfFormers}
}

// forget drops an address that the dataplane does not hold any more.
func (h *handover) forget(address netip.Addr) {
	delete(h.holders, address)
	delete(h.formers, address)
}

// look brings formers to what they say of themselves, and returns the addresses of which something has changed.
func (h *handover) look(others []membership.Other, alive func([]netip.Addr) []netip.Addr, now time.Time) (changed []netip.Addr) {
	asked := map[string]bool{}
	for _, f := range h.formers {
		asked[f.name] = true
	}
	at := reached(slices.DeleteFunc(slices.Clone(others), func(o membership.Other) bool { return !asked[o.Name] }), alive)
	for address, f := range h.formers {
		var is netip.Addr
		if now.Before(f.until) {
			is, _ = ofFamily(at[f.name], address)
		}
		if is != f.at {
			f.at = is
			h.formers[address] = f
			changed = append(changed, address)
		}
		if !now.Before(f.until) {
			delete(h.formers, address)
		}
	}
	return changed
}

// reached is where each of the other gateways takes packets of connections that it knows. Where its process has ended or failed, or cannot
// reach the hub, its dataplane works on as long as its host is there.
func reached(others []membership.Other, alive func([]netip.Addr) []netip.Addr) map[string][]netip.Addr {
	var unsure []netip.Addr
	for _, o := range others {
		if !o.Present {
			unsure = append(unsure, o.Reached...)
		}
	}
	there := alive(unsure)
	at := map[string][]netip.Addr{}
	for _, o := range others {
		at[o.Name] = slices.DeleteFunc(slices.Clone(o.Reached), func(a netip.Addr) bool { return !o.Present && !slices.Contains(there, a) })
	}
	return at
}

// ofFamily is the first of the addresses that is of the other one's family.
func ofFamily(addresses []netip.Addr, as netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(addresses, func(a netip.Addr) bool { return a.Is4() == as.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addresses[i], true
}

// ends is when the next former is asked no more; zero for never.
func (h *handover) ends() (next time.Time) {
	for _, f := range h.formers {
		if f.at.IsValid() && (next.IsZero() || f.until.Before(next)) {
			next = f.until
		}
	}
	return next
}

// facing is the frontend as the dataplane is told it: with other gateways to ask, where that makes sense and the backend can do it.
func (g *Gateway) facing(f model.Frontend) model.Frontend {
	if f.Protocol != model.TCP || f.Forwarding != model.NAT || !slices.Contains(g.host.description.Features, dataplane.Handover) {
		return f
	}
	if g.answering.elects {
		f.Handover = g.answering.handover.of(f.VIP)
	} else {
		f.Handover = g.answering.ring.tell(f.VIP)
	}
	return f
}

// handOver tells the dataplane about others to ask than before, before anything is claimed by that.
func (g *Gateway) handOver(ctx context.Context) {
	a, now := &g.answering, time.Now()
	var changed []netip.Addr
	if a.elects {
		changed = a.handover.look(a.member.Others(), g.vitals.alive, now)
	} else {
		changed = a.ring.look(a.member.Others(), g.vitals.alive, a.answers, now)
	}
	for _, address := range changed {
		a.untold[address] = true
	}
	switch {
	case !g.host.running():
		clear(a.untold) // a backend that does not run is told all at once, later
		return
	case len(a.untold) == 0 || g.host.calling != nil:
		return // one that is called is told when it has answered
	}
	of := a.untold
	a.untold, a.telling = map[netip.Addr]bool{}, of
	defer func() { a.telling = nil }()
	var d, waiting model.Delta
	for _, f := range g.hub.Snapshot().Frontends {
		switch {
		case !of[f.VIP]:
		case g.backlog.Has(f.FrontendKey):
			waiting.UpsertFrontends = append(waiting.UpsertFrontends, f)
		case g.held[f.FrontendKey]:
			d.UpsertFrontends = append(d.UpsertFrontends, f)
		}
	}
	g.take(waiting, g.flushed)
	g.log.Debug("asks others about connections than before", "frontends", len(d.UpsertFrontends), "addresses", len(of))
	accepted, _ := g.supported(d)
	for chunk := range slices.Chunk(accepted.UpsertFrontends, batchCost) {
		if err := g.deliver(ctx, model.Delta{UpsertFrontends: chunk}); err != nil {
			g.log.Error("hand over connections", "error", err)
			g.problem = err
			g.restartLater()
			return
		}
	}
}

// tellingPatience is for how long an address is not claimed since the backend is not told yet whom to ask about its connections.
const tellingPatience = 10 * time.Second

// isBeingTold tells whether the backend is about to learn whom to ask about connections to the address.
func (g *Gateway) isBeingTold(address netip.Addr) bool {
	a := &g.answering
	if !a.untold[address] && !a.telling[address] {
		return false
	}
	c := g.host.calling
	return c != nil && time.Since(c.began) < tellingPatience
}

// OwnAddresses are those on the interfaces whose link is up.
func OwnAddresses(interfaces []string) (own []netip.Addr) {
	for _, name := range interfaces {
		device, err := net.InterfaceByName(name)
		if err != nil || device.Flags&net.FlagRunning == 0 {
			continue
		}
		addresses, err := device.Addrs()
		if err != nil {
			continue
		}
		for _, text := range addresses {
			if prefix, err := netip.ParsePrefix(text.String()); err == nil && !prefix.Addr().IsLinkLocalUnicast() && !prefix.Addr().IsLoopback() {
				own = append(own, prefix.Addr())
			}
		}
	}
	return own
}
