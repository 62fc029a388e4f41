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

// dropStale deletes the entries of flows to endpoints that they must not reach any more. It compares all entries with the
// state, so that it does not depend on seeing every event.
//
// These entries are stale:
//   - UDP flows to an endpoint that left its pool or is unhealthy, or to a deleted frontend. A client that keeps sending would
//     stay on a dead node for ever, since its packets renew the entry (kubernetes#139629).
//   - TCP connections that have ended or were never answered, with an endpoint that gets no new connections: a new connection
//     with the same ports, or the next attempt, would go to that endpoint. Established connections stay while their tenant has
//     the frontend.
//   - Flows that began before their address was a VIP: connection tracking never rewrites them.
func (t *table) dropStale(ended ended) error {
	s := staleFilter{state: t.state, ended: ended, closing: closingTimeouts()}
	if len(ended.added) > 0 {
		s.tenantAddresses = t.state.tenantAddresses()
	}
	return hostflows.EachTracked(t.layout.v4, s.matches)
}

// ended has the frontends of a change whose flows may have to end.
type ended struct {
	// vips are addresses that were VIPs before.
	vips map[netip.Addr]bool
	// removed are frontends that were deleted or belong to another tenant now: all their flows end.
	removed map[model.FrontendKey]bool
	// added are new frontends of a new table. An existing flow to one of them ends unless its endpoint belongs to the tenant.
	added map[model.FrontendKey]bool
}

func newEnded() ended {
	return ended{map[netip.Addr]bool{}, map[model.FrontendKey]bool{}, map[model.FrontendKey]bool{}}
}

func (e ended) add(p *plan) {
	for _, key := range p.removed {
		e.removed[key], e.vips[key.VIP] = true, true
	}
	for _, key := range p.added {
		e.added[key] = true
	}
}

// scan is when all entries were scanned, and how long that took.
type scan struct {
	at   time.Time
	took time.Duration
}

// scanShare bounds the part of the time that repeated scans take, to 1/scanShare.
const scanShare = 20

// isDue reports whether it is time for the next scan.
func (l scan) isDue() bool { return time.Since(l.at) >= scanShare*l.took }

// endsInterval is how often dropEnded runs. A client whose SYN was sent to the endpoint of an ended connection sends it again after a second.
const endsInterval = 500 * time.Millisecond

// dropEnded deletes connections that have ended since their endpoint left, became unhealthy or began to drain. Otherwise connection tracking may keep
// them for days. The kernel returns only entries with a note or unansweredBit, but has to scan all of them.
func (t *table) dropEnded() error {
	if !t.ends.isDue() {
		return nil
	}
	began := time.Now()
	matches := func(f *hostflows.Flow) bool { return f.Protocol == model.TCP && staleFilter{state: t.state}.matches(f) }
	err := hostflows.EachMarked(t.layout.v4, notes|endBit, ^uint32(slowBit), matches)
	if t.state.lastDirect > directNumbers {
		err = errors.Join(err, hostflows.EachMarked(t.layout.v4, directNumbers|unansweredBit, directMask|unansweredBit, matches))
	}
	t.ends = scan{began, time.Since(began)}
	return err
}

// dropClosing does the same for direct connections that the client has closed.
func (t *table) dropClosing() error {
	if t.state.lastDirect == directNumbers || !t.closing.isDue() {
		return nil
	}
	began := time.Now()
	s := staleFilter{state: t.state, closing: closingTimeouts()}
	err := hostflows.EachMarked(t.layout.v4, directNumbers, directMask, func(f *hostflows.Flow) bool { return f.Protocol == model.TCP && s.matches(f) })
	t.closing = scan{began, time.Since(began)}
	return err
}

// closingTimeouts returns how long connection tracking keeps a connection that the client has closed after its last packet, by the state of the
// entry. It leaves out timeouts that cannot be read.
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

// openCount has the numbers of connections of frontends with a limit. The kernel counts them, but does not return them (nf_conncount), so all entries
// have to be scanned.
type openCount struct {
	counts map[model.FrontendKey]uint64
	scan
}

// counting counts flows of its frontends, as nf_conncount does.
type counting map[model.FrontendKey]uint64

func (c counting) count(f *hostflows.Flow) bool {
	key := model.FrontendKey{VIP: f.VIP, Protocol: f.Protocol, Port: f.VIPPort}
	if n, limited := c[key]; limited && f.State != nl.TCP_CONNTRACK_TIME_WAIT && f.State != nl.TCP_CONNTRACK_CLOSE {
		c[key] = n + 1
	}
	return false
}

// staleFilter matches the entries to delete.
type staleFilter struct {
	state *state
	ended
	tenantAddresses map[tenantAddress]bool
	// closing are closingTimeouts. If it is nil, connections that are closing are not stale.
	closing map[uint8]time.Duration
}

// tenantAddress is an address of a tenant's endpoints.
type tenantAddress struct {
	tenant  string
	address netip.Addr
}

func (s *state) tenantAddresses() map[tenantAddress]bool {
	out := map[tenantAddress]bool{}
	for id, pool := range s.pools {
		for _, e := range pool.endpoints {
			out[tenantAddress{id.Tenant(), e.address}] = true
		}
	}
	return out
}

// matches reports whether the flow belongs to this dataplane and has to end.
func (s staleFilter) matches(f *hostflows.Flow) bool {
	if s.endsWithFrontend(f) {
		return true
	}
	if f.Protocol != model.UDP && (f.Protocol != model.TCP || !isNotEstablished(f) && !s.isClosed(f)) {
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
			return f.Protocol == model.UDP && !e.keepsFlows || f.Protocol == model.TCP && !e.listed
		}
	}
	// After adoption, draining endpoints are unknown until the pool's content is sent again.
	return pool.complete
}

// endsWithFrontend reports whether the flow belongs to a frontend that was deleted, or that belongs to another tenant now.
func (s staleFilter) endsWithFrontend(f *hostflows.Flow) bool {
	if !f.IsRewritten() && forwardingOf(f) != model.Direct {
		return false
	}
	key := f.Frontend()
	if s.removed[key] {
		return true
	}
	frontend := s.state.frontends[key]
	return s.added[key] && frontend != nil && !s.tenantAddresses[tenantAddress{s.state.poolOf[frontend.pool].Tenant(), f.Endpoint}]
}

// forwardingOf returns the forwarding mode with which the flow began. Answers to a masqueraded flow go to the gateway, others to the client.
func forwardingOf(f *hostflows.Flow) model.Forwarding {
	switch {
	case isDirect(f):
		return model.Direct
	case f.ReplyTo == f.Client:
		return model.Transparent
	}
	return model.NAT
}

// isNotEstablished reports whether a TCP connection was never answered or has ended.
func isNotEstablished(f *hostflows.Flow) bool {
	if isDirect(f) && f.Mark&unansweredBit != 0 {
		return true
	}
	return f.State == nl.TCP_CONNTRACK_SYN_SENT || f.State == nl.TCP_CONNTRACK_TIME_WAIT || f.State == nl.TCP_CONNTRACK_CLOSE || isNotedEnded(f)
}

// closedAfter is how long the client of a direct connection that it has closed has to be silent until the endpoint is assumed to have closed it, too.
// Connection tracking does not see the endpoint's packets. A client that still receives data sends acknowledgements.
const closedAfter = 5 * time.Second

// isClosed reports whether client and endpoint of a direct connection seem to have closed it.
func (s staleFilter) isClosed(f *hostflows.Flow) bool {
	timeout, closing := s.closing[f.State]
	return closing && isDirect(f) && timeout-f.Expires >= closedAfter
}

func isDirect(f *hostflows.Flow) bool { return f.Mark&directMask == directNumbers }
