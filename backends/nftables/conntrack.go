package nftables

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/core/model"
)

// dropStaleUDP ends the UDP flows that conntrack still sends where they may no longer go: to an endpoint that left its
// pool or is unhealthy, or through a frontend that is gone. Without it a client that keeps sending stays on a dead node
// for ever, since its packets keep the entry alive (kubernetes#139629). It compares all entries with what should be, so
// that nothing depends on having seen every event. removed are addresses that were VIPs before this change.
func (t *table) dropStaleUDP(removed map[netip.Addr]bool) error {
	kind := netlink.InetFamily(unix.AF_INET6)
	if t.layout.v4 {
		kind = unix.AF_INET
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, kind, staleUDP{t.state, removed})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("conntrack: %w", err)
	}
	return nil
}

// staleUDP matches the entries to delete.
type staleUDP struct {
	state   *state
	removed map[netip.Addr]bool
}

var _ netlink.CustomConntrackFilter = staleUDP{}

// MatchConntrackFlow reports whether the flow is ours and must end.
func (f staleUDP) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != uint8(model.UDP) {
		return false
	}
	vip, endpoint := plainAddress(flow.Forward.DstIP), plainAddress(flow.Reverse.SrcIP)
	if f.state.vips[vip] == 0 && !f.removed[vip] || vip == endpoint {
		return false
	}
	frontend := f.state.frontends[model.FrontendKey{VIP: vip, Protocol: model.UDP, Port: flow.Forward.DstPort}]
	if frontend == nil {
		return true
	}
	pool := f.state.pools[f.state.poolOf[frontend.pool]]
	if pool == nil {
		return true
	}
	// A flow that is masqueraded is answered to the gateway, any other to the client.
	transparent := flow.Reverse.DstIP.Equal(flow.Forward.SrcIP)
	if flow.Reverse.SrcPort != frontend.target || transparent != frontend.transparent {
		return true
	}
	for _, e := range pool.endpoints {
		if e.address == endpoint {
			return !e.keeps
		}
	}
	// A former process may have known the endpoint as draining: only who was told the pool's content can tell.
	return pool.told
}

func plainAddress(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
