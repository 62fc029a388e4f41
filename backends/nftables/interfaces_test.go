package nftables

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

func addressed(link netlink.Link, networks ...string) error {
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	for _, network := range networks {
		ip, n, err := net.ParseCIDR(network)
		if err != nil {
			return err
		}
		n.IP = ip
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: n}); err != nil {
			return err
		}
	}
	return nil
}

func TestOnlyForwardingEthernetInterfacesAreFast(t *testing.T) {
	g := newGateway(t)
	named := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }
	bridge := &netlink.Bridge{LinkAttrs: named("bridge")}
	port := &netlink.Veth{LinkAttrs: named("port"), PeerName: "pod"} // pod has no address
	g.do(func() error {
		return errors.Join(addressed(bridge, "198.18.2.1/24"), addressed(port, "198.18.3.1/24"), netlink.LinkSetMaster(port, bridge),
			// As the ptp plugin creates them for each pod, and as clouds configure the address of a machine.
			addressed(&netlink.Veth{LinkAttrs: named("routed"), PeerName: "pod2"}, "198.18.4.1/32", "2001:db8:4::1/128"),
			addressed(&netlink.Bridge{LinkAttrs: named("cloud")}, "198.18.5.1/32"))
	})
	g.do(func() error {
		names, err := fastInterfaces()
		require.Equal(t, "back bridge cloud front", strings.Join(names, " "))
		return err
	})
}

// found sets the interfaces that the fast path finds.
func (g *gateway) found(interfaces []string, err error) {
	g.fast.interfaces = func() ([]string, error) { return interfaces, err }
}

func (g *gateway) notes() []string {
	description, err := g.Describe(g.Context())
	require.NoError(g, err)
	return description.Notes
}

// trouble returns what the fast path reports when it is adapted to the host.
func (g *gateway) trouble() (report string) {
	g.do(func() error { report = g.fast.sync(); return nil })
	return report
}

// beginning starts the fast path with these interfaces, on any kernel.
func (g *gateway) beginning(interfaces []string, err error) {
	g.fast = &fastPath{tables: g.tables}
	g.found(interfaces, err)
}

func TestATemporaryErrorLeavesTheFlowtablesUnchanged(t *testing.T) {
	g := newGateway(t)
	before := g.nft("", "-a", "list", "ruleset")
	on := g.isOn()
	g.beginning(nil, fmt.Errorf("list interfaces: %w", netlink.ErrDumpInterrupted))
	want := retryNote + "list interfaces: " + netlink.ErrDumpInterrupted.Error()
	require.Equal(t, want, g.trouble())
	require.Equal(t, []string{want}, g.notes())
	require.Empty(t, g.trouble(), "it is reported once")
	require.Equal(t, before, g.nft("", "-a", "list", "ruleset"))
	require.False(t, g.fast.disabled)

	g.fast.interfaces = fastInterfaces
	g.trouble()
	require.Equal(t, on, g.isOn(), "as the kernel has it")
	require.Equal(t, !on, g.fast.disabled)
}

func TestThereIsNoFastPathUntilThereIsAnInterface(t *testing.T) {
	g := newGateway(t)
	on := g.isOn()
	g.beginning(nil, nil)
	require.Equal(t, "fast path: none: no interface with a global address", g.trouble())
	require.Equal(t, []string{noInterfaceNote}, g.notes())
	require.NotContains(t, g.nft("", "list", "ruleset"), "flowtable")
	require.False(t, g.isOn())

	g.fast.interfaces = fastInterfaces
	report := g.trouble()
	if on {
		require.Empty(t, report)
		require.Equal(t, []string{fastNote}, g.notes())
		return
	}
	require.Equal(t, unsupportedNote, report)
	require.Equal(t, []string{unsupportedNote}, g.notes())
	require.True(t, g.fast.disabled, "a kernel without flowtables is not tried again")
}

func TestThereIsNoFlowtableIfThereAreTooManyInterfaces(t *testing.T) {
	g := newGateway(t)
	g.beginning(make([]string, 256), nil)
	require.Equal(t, "fast path: none: 256 interfaces with a global address, and a flowtable takes 255 at most", g.trouble())
	require.NotContains(t, g.nft("", "list", "ruleset"), "flowtable")
	require.False(t, g.fast.disabled)
}

func TestWatchReportsAProblemOfTheFastPathOnce(t *testing.T) {
	g := newGateway(t)
	g.beginning(nil, errors.New("list interfaces: no buffer space available"))
	var reports []string
	g.do(func() error { return g.watchFor(5*time.Second, &reports) })
	require.Equal(t, []string{retryNote + "list interfaces: no buffer space available"}, reports)
}
