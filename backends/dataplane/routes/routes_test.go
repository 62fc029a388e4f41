package routes

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

// host is a host with one interface.
type host struct{ link netlink.Link }

func (h *host) address(text string) *netlink.Addr {
	ip, network, _ := net.ParseCIDR(text)
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: network.Mask}, Flags: unix.IFA_F_NODAD}
}

func (h *host) rule(family int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority = family, 100, 100
	return r
}

// changes returns the changes that the test makes, by name.
func (h *host) changes() map[string]func() error {
	_, network4, _ := net.ParseCIDR("198.51.100.0/24")
	_, network6, _ := net.ParseCIDR("2001:db8:1::/64")
	index := h.link.Attrs().Index
	return map[string]func() error{
		"IPv4 address": func() error { return netlink.AddrAdd(h.link, h.address("192.0.2.1/24")) },
		"IPv6 address": func() error { return netlink.AddrAdd(h.link, h.address("2001:db8::1/64")) },
		"IPv4 route":   func() error { return netlink.RouteAdd(&netlink.Route{Dst: network4, LinkIndex: index}) },
		"IPv6 route":   func() error { return netlink.RouteAdd(&netlink.Route{Dst: network6, LinkIndex: index}) },
		"IPv4 rule":    func() error { return netlink.RuleAdd(h.rule(netlink.FAMILY_V4)) },
		"IPv6 rule":    func() error { return netlink.RuleAdd(h.rule(netlink.FAMILY_V6)) },
		"MAC":          func() error { return netlink.LinkSetHardwareAddr(h.link, net.HardwareAddr{2, 0, 0, 0, 0, 7}) },
	}
}

func TestEachChangeOfRoutesRulesAddressesAndInterfacesIsRecorded(t *testing.T) {
	missed := map[string]bool{}
	var failed error
	preflighttest.InNetworkNamespace(t, func() {
		var c Changes
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "far"}
		if failed = netlink.LinkAdd(pair); failed == nil {
			failed = netlink.LinkSetUp(pair)
		}
		socket, err := subscribe()
		if failed != nil || err != nil {
			return
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.receive(ctx, socket) }()
		h := &host{pair}
		for name, change := range h.changes() {
			for quiet := 0; quiet < 10; quiet++ { // until there are no more events of the previous change
				if time.Sleep(10 * time.Millisecond); c.noted.Swap(false) {
					quiet = 0
				}
			}
			if failed = change(); failed != nil {
				break
			}
			missed[name] = true
			for range 500 {
				if c.noted.Swap(false) {
					delete(missed, name)
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		cancel()
		<-ended
	})
	require.NoError(t, failed)
	require.Empty(t, missed)
}

func TestTheKernelIsReadAfterChangesButNotTooOften(t *testing.T) {
	var c Changes
	now := time.Now()
	require.True(t, c.Due(now), "the kernel has not been read yet")
	c.MarkRead(now)
	c.took = time.Second
	require.False(t, c.Due(now.Add(59*time.Second)))
	require.True(t, c.Due(now.Add(time.Minute)))
	c.Note()
	require.False(t, c.Due(now.Add(19*time.Second)), "reading takes a second")
	require.True(t, c.Due(now.Add(20*time.Second)), "the change is still pending")
	c.Note()
	c.MarkRead(now.Add(20 * time.Second))
	c.took = 0
	require.True(t, c.Due(now.Add(21*time.Second)), "the change may have come after the kernel was read")
}
