package nftables

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

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
	return t.eachFlow(stale{t.state, removed})
}

// eachFlow shows all entries to the filter, and deletes those that it matches.
func (t *table) eachFlow(filter netlink.CustomConntrackFilter) error {
	kind := netlink.InetFamily(unix.AF_INET6)
	if t.layout.v4 {
		kind = unix.AF_INET
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, kind, filter)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("conntrack: %w", err)
	}
	return nil
}

// openCount is how many connections frontends have that are limited. The kernel counts them and does not tell (nf_conncount), so all entries
// have to be looked at.
type openCount struct {
	of   map[model.FrontendKey]uint64
	at   time.Time
	took time.Duration
}

// countShare is the part of the time that counting takes at most.
const countShare = 20

// addOpen adds how many connections the limited frontends have, or had when that was counted last.
func (t *table) addOpen(to map[model.FrontendKey]dataplane.Counter) error {
	limited := map[model.FrontendKey]uint64{}
	for key, f := range t.state.frontends {
		if f.limits[connectionLimit] > 0 {
			limited[key] = 0
		}
	}
	if began := time.Now(); len(limited) > 0 && began.Sub(t.open.at) >= countShare*t.open.took {
		if err := t.eachFlow(counting(limited)); err != nil {
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

// counting counts the flows of the frontends that it has, as nf_conncount does, and matches none.
type counting map[model.FrontendKey]uint64

var _ netlink.CustomConntrackFilter = counting{}

// MatchConntrackFlow counts the flow.
func (c counting) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	key := model.FrontendKey{VIP: plainAddress(flow.Forward.DstIP), Protocol: model.Protocol(flow.Forward.Protocol), Port: flow.Forward.DstPort}
	info, isTCP := flow.ProtoInfo.(*netlink.ProtoInfoTCP)
	ended := isTCP && (info.State == nl.TCP_CONNTRACK_TIME_WAIT || info.State == nl.TCP_CONNTRACK_CLOSE)
	if _, limited := c[key]; limited && !ended {
		c[key]++
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

var _ netlink.CustomConntrackFilter = stale{}

// MatchConntrackFlow reports whether the flow is ours and must end.
func (f stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	protocol := model.Protocol(flow.Forward.Protocol)
	if protocol != model.UDP && (protocol != model.TCP || !isNoConnection(flow)) {
		return false
	}
	vip, endpoint := plainAddress(flow.Forward.DstIP), plainAddress(flow.Reverse.SrcIP)
	if f.state.vips[vip] == 0 && !f.removed[vip] {
		return false
	}
	frontend := f.state.frontends[model.FrontendKey{VIP: vip, Protocol: protocol, Port: flow.Forward.DstPort}]
	if frontend == nil {
		return true
	}
	pool := f.state.pools[f.state.poolOf[frontend.pool]]
	if pool == nil {
		return true
	}
	if flow.Reverse.SrcPort != frontend.target || forwardingOf(flow) != frontend.forwarding {
		return true
	}
	for _, e := range pool.endpoints {
		if e.address == endpoint {
			return protocol == model.UDP && !e.keeps || protocol == model.TCP && !e.listed
		}
	}
	// A former process may have known the endpoint as draining: only who was told the pool's content can tell.
	return pool.told
}

// forwardingOf tells the mode in which the flow began. One that is masqueraded is answered to the gateway, any other to the
// client.
func forwardingOf(flow *netlink.ConntrackFlow) model.Forwarding {
	switch {
	case flow.Mark&directMask == directNumbers:
		return model.Direct
	case flow.Reverse.DstIP.Equal(flow.Forward.SrcIP):
		return model.Transparent
	}
	return model.NAT
}

// isNoConnection reports whether the entry of a TCP flow is of one that nobody has answered, or that has ended.
func isNoConnection(flow *netlink.ConntrackFlow) bool {
	if flow.Mark&(directMask|unansweredBit) == directNumbers|unansweredBit {
		return true
	}
	info, ok := flow.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && slices.Contains([]uint8{nl.TCP_CONNTRACK_SYN_SENT, nl.TCP_CONNTRACK_TIME_WAIT, nl.TCP_CONNTRACK_CLOSE}, info.State)
}

func plainAddress(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
