package gateway

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// handover is to whom packets of connections go that this gateway does not know: to the gateway that has answered for the address before,
// for a while, as long as it works.
type handover struct {
	limit time.Duration
	// holders are the gateways that answer for an address, as this one has seen it last; formers are those that this one has taken
	// addresses over from, and until when they are asked.
	holders map[netip.Addr]string
	formers map[netip.Addr]former
	// lost are addresses that this gateway has answered for itself.
	lost map[netip.Addr]loss
	// left are gateways that leave, and since when; asked is the one of them that is asked about everything.
	left  map[string]time.Time
	asked string
}

type former struct {
	name  string
	until time.Time
	// at is where it is reached, in the address's family; it changes as the gateway says.
	at netip.Addr
	// returns: it has had the address from this gateway not long ago. If it fails before it can take that back, its dataplane goes on to
	// send here what it does not know, and the two would send each other's packets to and fro.
	returns bool
}

// loss is to whom an address was lost, and when.
type loss struct {
	to string
	at time.Time
}

// take notes who answers for an address now. Where it is this gateway, and was another one, that one is asked.
func (h *handover) take(address netip.Addr, holder, self string, now time.Time) {
	before := h.holders[address]
	if holder == before {
		return
	}
	h.holders[address] = holder
	if before == self {
		h.lost[address] = loss{holder, now}
	}
	switch {
	case holder != self:
		// Only who answers asks, so that nobody asks back.
		if f, asks := h.formers[address]; asks {
			f.until = now
			h.formers[address] = f
		}
	case before != "":
		l := h.lost[address]
		h.formers[address] = former{name: before, until: now.Add(h.limit), returns: l.to == before && now.Sub(l.at) < h.limit}
	}
}

// end has nobody asked any more.
func (h *handover) end(now time.Time) {
	for address, f := range h.formers {
		f.until = now
		h.formers[address] = f
	}
}

// askWhoLeaves is for gateways of which each answers for all addresses: where one leaves, others get its connections, and ask it.
func (h *handover) askWhoLeaves(names []string, all map[netip.Addr]bool, fresh []netip.Addr, now time.Time) {
	maps.DeleteFunc(h.left, func(name string, _ time.Time) bool { return !slices.Contains(names, name) })
	asked := ""
	for _, name := range names {
		if h.left[name].IsZero() {
			h.left[name] = now
		}
		if now.Sub(h.left[name]) < h.limit && (asked == "" || h.left[name].After(h.left[asked])) {
			asked = name // the last one that has left
		}
	}
	look, before := slices.Values(fresh), h.asked
	if asked != before {
		look = maps.Keys(all)
	}
	h.asked = asked
	for address := range look {
		f, asks := h.formers[address]
		switch {
		case asked != "":
			h.formers[address] = former{name: asked, until: now.Add(h.limit), at: f.at}
		case asks && f.name == before:
			f.until = now
			h.formers[address] = f
		}
	}
}

// reselect is the same for an address whose pool chooses other gateways than before: who has served it is asked, by those who serve it.
func (h *handover) reselect(address netip.Addr, self string, peers []string, served, serves func(string) bool, now time.Time) {
	if f, asks := h.formers[address]; asks && f.name != h.asked && (!serves(self) || serves(f.name)) {
		f.until = now
		h.formers[address] = f
	}
	for _, name := range peers {
		if serves(self) && served(name) && !serves(name) {
			h.formers[address] = former{name: name, until: now.Add(h.limit), at: h.formers[address].at}
		}
	}
}

// forget drops an address that the dataplane does not hold any more.
func (h *handover) forget(address netip.Addr) {
	delete(h.holders, address)
	delete(h.formers, address)
	delete(h.lost, address)
}

// look brings formers to what they say of themselves, and returns the addresses of which something has changed.
func (h *handover) look(reached func(name string) (at []netip.Addr, failed bool), now time.Time) (changed []netip.Addr) {
	at, hasFailed := map[string][]netip.Addr{}, map[string]bool{}
	for address, f := range h.formers {
		if _, asked := at[f.name]; !asked {
			at[f.name], hasFailed[f.name] = reached(f.name)
		}
		if f.returns && hasFailed[f.name] {
			f.until = now
		}
		var is netip.Addr
		if i := slices.IndexFunc(at[f.name], func(a netip.Addr) bool { return a.Is4() == address.Is4() }); i >= 0 && now.Before(f.until) {
			is = at[f.name][i]
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

// ends is when the next former is asked no more; zero for never.
func (h *handover) ends() (next time.Time) {
	for _, f := range h.formers {
		if f.at.IsValid() && (next.IsZero() || f.until.Before(next)) {
			next = f.until
		}
	}
	return next
}

// facing is the frontend as the dataplane is told it: with the former gateway, where that makes sense and the backend can do it.
func (g *Gateway) facing(f model.Frontend) model.Frontend {
	if f.Protocol == model.TCP && f.Forwarding == model.NAT && slices.Contains(g.host.description.Features, dataplane.Handover) {
		f.Former = g.answering.handover.formers[f.VIP].at
	}
	return f
}

// handOver tells the dataplane about formers that have come or gone, before anything is claimed by that.
func (g *Gateway) handOver(ctx context.Context) {
	a := &g.answering
	changed := a.handover.look(func(name string) ([]netip.Addr, bool) {
		at, failed := a.member.Reached(name)
		if failed {
			// Its process has failed, or cannot reach the hub. Where its host is there, so is what its dataplane knows.
			at = g.vitals.alive(at)
		}
		return at, failed
	}, time.Now())
	if len(changed) == 0 || !g.host.running() || !g.retryAt.IsZero() {
		return // who is not told now is told all at once, later
	}
	of := map[netip.Addr]bool{}
	for _, address := range changed {
		of[address] = true
	}
	var d model.Delta
	for _, f := range g.hub.Snapshot().Frontends {
		if of[f.VIP] && g.held[f.FrontendKey] {
			d.UpsertFrontends = append(d.UpsertFrontends, f)
		}
	}
	if err := g.program(ctx, d); err != nil {
		g.log.Error("hand over connections", "error", err)
		g.problem = err
		g.restartLater()
	}
}

// endLimit bounds how long a gateway takes at its end to have nobody asked any more.
const endLimit = 2 * time.Second

// endHandover is for a gateway that leaves: others ask it, and it asks nobody.
func (g *Gateway) endHandover(ctx context.Context) {
	if g.answering.member == nil || !g.synced {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	g.answering.handover.end(time.Now())
	g.handOver(ctx)
}

// OwnAddresses are those on the interfaces.
func OwnAddresses(interfaces []string) (own []netip.Addr) {
	for _, name := range interfaces {
		device, err := net.InterfaceByName(name)
		if err != nil {
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
