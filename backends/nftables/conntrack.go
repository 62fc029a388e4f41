package nftables

import (
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// dropStale ends the flows that conntrack still sends where they may no longer go. It compares all entries with what should
// be, so that nothing depends on having seen every event. removed are addresses that were VIPs before this change.
//
// Stale is a UDP flow to an endpoint that left its pool or is unhealthy, or through a frontend that is gone: a client that
// keeps sending would stay on a dead node for ever, since its packets keep the entry alive (kubernetes#139629). Stale is,
// too, what is left of a TCP connection that has ended, or that nobody has answered, with an endpoint that gets no new
// connections: another one with the same ports, and the next attempt, would go there. Established connections stay. And
// stale is what began before its address was a VIP: conntrack never rewrites it.
func (t *table) dropStale(removed map[netip.Addr]bool) error {
	return eachFlow(t.layout.v4, stale{t.state, removed}.matches)
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
	err := eachFlowMarked(t.layout.v4, notes|resetBit, ^uint32(slowBit), func(f *flow) bool {
		return f.protocol == model.TCP && stale{t.state, nil}.matches(f)
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
		if err := eachFlow(t.layout.v4, counting(limited).look); err != nil {
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

func (c counting) look(f *flow) bool {
	key := model.FrontendKey{VIP: f.vip, Protocol: f.protocol, Port: f.vipPort}
	if n, limited := c[key]; limited && f.state != nl.TCP_CONNTRACK_TIME_WAIT && f.state != nl.TCP_CONNTRACK_CLOSE {
		c[key] = n + 1
	}
	return false
}

// forget ends all flows but established connections, once the table is gone.
func (t *table) forget() error {
	removed := map[netip.Addr]bool{}
	for vip := range t.state.vips {
		removed[vip] = true
	}
	t.state = newState(t.layout.family)
	return t.dropStale(removed)
}

// stale matches the entries to delete.
type stale struct {
	state   *state
	removed map[netip.Addr]bool
}

// matches reports whether the flow is ours and must end.
func (s stale) matches(f *flow) bool {
	if f.protocol != model.UDP && (f.protocol != model.TCP || !f.isNoConnection()) {
		return false
	}
	if s.state.vips[f.vip] == 0 && !s.removed[f.vip] {
		return false
	}
	frontend := s.state.frontends[model.FrontendKey{VIP: f.vip, Protocol: f.protocol, Port: f.vipPort}]
	if frontend == nil {
		return true
	}
	pool := s.state.pools[s.state.poolOf[frontend.pool]]
	if pool == nil {
		return true
	}
	if f.endpointPort != frontend.target || f.forwarding() != frontend.forwarding {
		return true
	}
	for _, e := range pool.endpoints {
		if e.address == f.endpoint {
			return f.protocol == model.UDP && !e.keeps || f.protocol == model.TCP && !e.listed
		}
	}
	// A former process may have known the endpoint as draining: only who was told the pool's content can tell.
	return pool.told
}

// forwarding tells the mode in which the flow began. One that is masqueraded is answered to the gateway, any other to the client.
func (f *flow) forwarding() model.Forwarding {
	switch {
	case f.mark&directMask == directNumbers:
		return model.Direct
	case f.answered == f.client:
		return model.Transparent
	}
	return model.NAT
}

// isNoConnection reports whether the entry of a TCP flow is of one that nobody has answered, or that has ended.
func (f *flow) isNoConnection() bool {
	if f.mark&(directMask|unansweredBit) == directNumbers|unansweredBit {
		return true
	}
	return f.state == nl.TCP_CONNTRACK_SYN_SENT || f.state == nl.TCP_CONNTRACK_TIME_WAIT || f.state == nl.TCP_CONNTRACK_CLOSE || f.wasReset()
}
