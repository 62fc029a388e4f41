package nftables

import (
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/core/model"
)

// dropStale ends the flows that conntrack still sends where they may no longer go. It compares all entries with what should
// be, so that nothing depends on having seen every event.
//
// Stale is a UDP flow to an endpoint that left its pool or is unhealthy, or through a frontend that is gone: a client that
// keeps sending would stay on a dead node for ever, since its packets keep the entry alive (kubernetes#139629). Stale is,
// too, what is left of a TCP connection that has ended, or that nobody has answered, with an endpoint that gets no new
// connections: another one with the same ports, and the next attempt, would go there. Established connections stay while their
// tenant has the frontend. And stale is what began before its address was a VIP: conntrack never rewrites it.
func (t *table) dropStale(ended ended) error {
	s := stale{state: t.state, ended: ended}
	if len(ended.begun) > 0 {
		s.homes = t.state.homes()
	}
	return hostflows.EachTracked(t.layout.v4, s.matches)
}

// ended is what a change has taken away.
type ended struct {
	// vips are addresses that were VIPs before.
	vips map[netip.Addr]bool
	// cut are frontends that are gone, or another tenant's: all their flows end.
	cut map[model.FrontendKey]bool
	// begun are frontends of a table that was made with nothing before it: a flow of then is a stranger's unless its endpoint is one of the tenant's.
	begun map[model.FrontendKey]bool
}

func newEnded() ended {
	return ended{map[netip.Addr]bool{}, map[model.FrontendKey]bool{}, map[model.FrontendKey]bool{}}
}

func (e ended) note(p *plan) {
	for _, key := range p.cut {
		e.cut[key], e.vips[key.VIP] = true, true
	}
	for _, key := range p.begun {
		e.begun[key] = true
	}
}

// lookForResets is when resets were looked for, and how long that took.
type lookForResets struct {
	at   time.Time
	took time.Duration
}

// dropReset ends connections that were fast and have been reset since their endpoint left, became unhealthy or began to drain: nothing else
// would look for them, and conntrack may keep one for days. The kernel shows only those that are noted to have been reset, but it has to
// look at all, so this takes a share of the time at most.
func (t *table) dropReset() error {
	began := time.Now()
	if began.Sub(t.resets.at) < lookShare*t.resets.took {
		return nil
	}
	err := hostflows.EachMarked(t.layout.v4, notes|resetBit, ^uint32(slowBit), func(f *hostflows.Flow) bool {
		return f.Protocol == model.TCP && stale{state: t.state}.matches(f)
	})
	t.resets = lookForResets{began, time.Since(began)}
	return err
}

// openCount is how many connections frontends have that are limited. The kernel counts them and does not tell (nf_conncount), so all entries
// have to be looked at.
type openCount struct {
	of   map[model.FrontendKey]uint64
	at   time.Time
	took time.Duration
}

// lookShare is the part of the time that it takes at most to look at all entries again and again.
const lookShare = 20

// addOpen adds how many connections the limited frontends have, or had when that was counted last.
func (t *table) addOpen(to map[model.FrontendKey]dataplane.Counter) error {
	limited := map[model.FrontendKey]uint64{}
	for key, f := range t.state.frontends {
		if f.limits[connectionLimit] > 0 {
			limited[key] = 0
		}
	}
	if began := time.Now(); len(limited) > 0 && began.Sub(t.open.at) >= lookShare*t.open.took {
		if err := hostflows.EachTracked(t.layout.v4, counting(limited).look); err != nil {
			return err
		}
		t.open = openCount{limited, time.Now(), time.Since(began)}
	}
	for key := range limited {
		c := to[key]
		c.Open = t.open.of[key]
		to[key] = c
	}
	return nil
}

// counting counts the flows of the frontends that it has, as nf_conncount does.
type counting map[model.FrontendKey]uint64

func (c counting) look(f *hostflows.Flow) bool {
	key := model.FrontendKey{VIP: f.VIP, Protocol: f.Protocol, Port: f.VIPPort}
	if n, limited := c[key]; limited && f.State != nl.TCP_CONNTRACK_TIME_WAIT && f.State != nl.TCP_CONNTRACK_CLOSE {
		c[key] = n + 1
	}
	return false
}

// forget ends all flows but established connections, once the table is gone.
func (t *table) forget() error {
	ended := newEnded()
	for vip := range t.state.vips {
		ended.vips[vip] = true
	}
	t.state = newState(t.layout.family)
	return t.dropStale(ended)
}

// stale matches the entries to delete.
type stale struct {
	state *state
	ended
	homes map[home]bool
}

// home is an address of a tenant's endpoints.
type home struct {
	tenant  string
	address netip.Addr
}

func (s *state) homes() map[home]bool {
	out := map[home]bool{}
	for id, pool := range s.pools {
		for _, e := range pool.endpoints {
			out[home{id.Tenant(), e.address}] = true
		}
	}
	return out
}

// matches reports whether the flow is ours and must end.
func (s stale) matches(f *hostflows.Flow) bool {
	if s.isOver(f) {
		return true
	}
	if f.Protocol != model.UDP && (f.Protocol != model.TCP || !isNoConnection(f)) {
		return false
	}
	if s.state.vips[f.VIP] == 0 && !s.ended.vips[f.VIP] {
		return false
	}
	frontend := s.state.frontends[f.Frontend()]
	if frontend == nil {
		return true
	}
	pool := s.state.pools[s.state.poolOf[frontend.pool]]
	if pool == nil {
		return true
	}
	if f.EndpointPort != frontend.target || forwardingOf(f) != frontend.forwarding {
		return true
	}
	for _, e := range pool.endpoints {
		if e.address == f.Endpoint {
			return f.Protocol == model.UDP && !e.keeps || f.Protocol == model.TCP && !e.listed
		}
	}
	// A former process may have known the endpoint as draining: only who was told the pool's content can tell.
	return pool.told
}

// isOver reports whether the flow is one of ours whose frontend has ended, or has become another tenant's.
func (s stale) isOver(f *hostflows.Flow) bool {
	if !f.IsRewritten() && forwardingOf(f) != model.Direct {
		return false
	}
	key := f.Frontend()
	if s.cut[key] {
		return true
	}
	frontend := s.state.frontends[key]
	return s.begun[key] && frontend != nil && !s.homes[home{s.state.poolOf[frontend.pool].Tenant(), f.Endpoint}]
}

// forwardingOf tells the mode in which the flow began. One that is masqueraded is answered to the gateway, any other to the client.
func forwardingOf(f *hostflows.Flow) model.Forwarding {
	switch {
	case f.Mark&directMask == directNumbers:
		return model.Direct
	case f.Answered == f.Client:
		return model.Transparent
	}
	return model.NAT
}

// isNoConnection reports whether the entry of a TCP flow is of one that nobody has answered, or that has ended.
func isNoConnection(f *hostflows.Flow) bool {
	if f.Mark&(directMask|unansweredBit) == directNumbers|unansweredBit {
		return true
	}
	return f.State == nl.TCP_CONNTRACK_SYN_SENT || f.State == nl.TCP_CONNTRACK_TIME_WAIT || f.State == nl.TCP_CONNTRACK_CLOSE || wasReset(f)
}
