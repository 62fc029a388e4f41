// Package preflighttest runs tests in their own network namespaces.
package preflighttest

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight"
)

// InNetworkNamespace calls f as preflight.InNetworkNamespace does. It skips the test without root. f runs in another goroutine than the test, so it has to use
// assert and not require.
func InNetworkNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	require.True(t, preflight.InNetworkNamespace(f), "the kernel makes a network namespace")
}

// Plug makes a pair of interfaces, NAME and NAME-far, both up. The first one has the addresses, such as 192.0.2.1/24.
func Plug(name string, addresses ...string) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-far"}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	far, err := netlink.LinkByName(link.PeerName)
	if err := errors.Join(err, netlink.LinkSetUp(far)); err != nil {
		return err
	}
	for _, text := range addresses {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}
