package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// endpoints is the number of endpoint addresses of each family that every lab has, MaxEndpoints the number after MoreEndpoints.
const (
	endpoints    = 100
	MaxEndpoints = 300
)

// EndpointAddress returns the address of the i-th endpoint, i from 0 to MaxEndpoints-1. Node i modulo Nodes has the address.
func EndpointAddress(v4 bool, i int) netip.Addr {
	if i < 200 {
		return pick(v4, "198.51.100.0", "2001:db8:1::", 10+i)
	}
	return pick(v4, "198.19.0.0", "2001:db8:2::", 1+i-200)
}

// moreNetworks are the networks of endpoints from the 200th on. Gateways reach them directly.
var moreNetworks = [...]string{"198.19.0.0/24", "2001:db8:2::/64"}

// MoreEndpoints adds endpoints of the family, up to MaxEndpoints. Servers that listen already do not listen there.
func (l *Lab) MoreEndpoints(v4 bool) error {
	network := moreNetworks[1]
	if v4 {
		network = moreNetworks[0]
	}
	var errs []error
	for _, g := range l.Gateways {
		errs = append(errs, g.Do(func() error { return onLink("back", network) }))
	}
	for i, n := range l.Nodes {
		errs = append(errs, n.Do(func() error {
			var errs []error
			for e := i; e < MaxEndpoints; e += Nodes {
				if e >= endpoints {
					errs = append(errs, addAddress("eth0", EndpointAddress(v4, e)))
				}
			}
			return errors.Join(errs...)
		}))
	}
	return errors.Join(errs...)
}

// onLink adds a route to a network whose hosts are on the link.
func onLink(name, network string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("route to %s: %w", network, err)
	}
	return nil
}

// addAddress adds an address with its network's prefix, which is usable at once.
func addAddress(name string, a netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	bits := a.BitLen() / 2
	if a.Is4() {
		bits = 24
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
	if a.Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, address); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("address %s: %w", a, err)
	}
	return nil
}
