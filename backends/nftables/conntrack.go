package nftables

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"

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
	s := stale{state: t.state, ended: ended, closing: closingTimeouts()}
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

// look is when something was looked for among all entries, and how long that took.
type look struct {
	at   time.Time
	took time.Duration
}

// lookShare is the part of the time that it takes at most to look at all entries again and again.
const lookShare = 20

// may reports whether it is time to look again.
func (l look) may() bool { return time.Since(l.at) >= lookShare*l.took }

// endsInterval is how often the backend looks for connections that have ended after their endpoint left: a client whose SYN meets what is left of
// one sends it again after a second.
const endsInterval = 500 * time.Millisecond

// dropEnded ends connections that have ended since their endpoint left, became unhealthy or began to drain: nothing else would look for them, and
// conntrack may keep one for days. The kernel shows only those with a note or a sign, but it has to look at all.
func (t *table) dropEnded() error {
	if !t.ends.may() {
		return nil
	}
	began := time.Now()
	matches := func(f *hostflows.Flow) bool { return f.Protocol == model.TCP && stale{state: t.state}.matches(f) }
	err := hostflows.EachMarked(t.layout.v4, notes|endBit, ^uint32(slowBit), matches)
	if t.state.lastDirect > directNumbers {
		err = errors.Join(err, hostflows.EachMarked(t.layout.v4, directNumbers|unansweredBit, directMask|unansweredBit, matches))
	}
	t.ends = look{began, time.Since(began)}
	return err
}

// dropClosing ends direct connections of the same kind of which the client has ended its half.
func (t *table) dropClosing() error {
	if t.state.lastDirect == directNumbers || !t.closing.may() {
		return nil
	}
	began := time.Now()
	s := stale{state: t.state, closing: closingTimeouts()}
	err := hostflows.EachMarked(t.layout.v4, directNumbers, directMask, func(f *hostflows.Flow) bool { return f.Protocol == model.TCP && s.matches(f) })
	t.closing = look{began, time.Since(began)}
	return err
}

// closingTimeouts is how long conntrack keeps a connection after the client's last packet that the client has ended, by the state of the entry.
// What cannot be read is not there.
func closingTimeouts() map[uint8]time.Duration {
	out := map[uint8]time.Duration{}
	for state, name := range map[uint8]string{nl.TCP_CONNTRACK_FIN_WAIT: "fin_wait", nl.TCP_CONNTRACK_CLOSE_WAIT: "close_wait", nl.TCP_CONNTRACK_LAST_ACK: "last_ack"} {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_" + name)
		if err != nil {
			continue
		}
		if seconds, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32); err == nil {
			out[state] = time.Duration(seconds) * time.Second
		}
	}
	return out
}

// openCount is how many connections frontends have that are limited. The kernel counts them and does not tell (nf_conncount), so all entries
// have to be looked at.
type openCount struct {
	of map[model.FrontendKey]uint64
	look
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

// stale matches the entries to delete.
type stale struct {
	state *state
	ended
	homes map[home]bool
	// closing are closingTimeouts; nil: what is closing stays.
	closing map[uint8]time.Duration
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
	if f.Protocol != model.UDP && (f.Protocol != model.TCP || !isNoConnection(f) && !s.isClosed(f)) {
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
	case isDirect(f):
		return model.Direct
	case f.Answered == f.Client:
		return model.Transparent
	}
	return model.NAT
}

// isNoConnection reports whether the entry of a TCP flow is of one that nobody has answered, or that has ended.
func isNoConnection(f *hostflows.Flow) bool {
	if isDirect(f) && f.Mark&unansweredBit != 0 {
		return true
	}
	return f.State == nl.TCP_CONNTRACK_SYN_SENT || f.State == nl.TCP_CONNTRACK_TIME_WAIT || f.State == nl.TCP_CONNTRACK_CLOSE || mayHaveEnded(f)
}

// closedAfter is for how long nothing comes from the client of a direct connection that the client has ended before the endpoint is taken to
// have ended it, too. Conntrack does not see the endpoint's half. A client that still receives acknowledges what it gets.
const closedAfter = 5 * time.Second

// isClosed reports whether both ends of a direct connection seem to have ended it.
func (s stale) isClosed(f *hostflows.Flow) bool {
	timeout, closing := s.closing[f.State]
	return closing && isDirect(f) && timeout-f.Expires >= closedAfter
}

func isDirect(f *hostflows.Flow) bool { return f.Mark&directMask == directNumbers }
