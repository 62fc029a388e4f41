package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NarrowPathToB lowers the MTU of the router's route to client b. Neither end knows of it, because their links carry larger
// packets.
func (l *Lab) NarrowPathToB(mtu int) error {
	return errors.Join(l.Router.narrow("b", l.B.IPv4, netip.Addr{}, mtu), l.Router.narrow("b", l.B.IPv6, netip.Addr{}, mtu))
}

// NarrowGatewayToB lowers the MTU of the first gateway's route to client b.
func (l *Lab) NarrowGatewayToB(mtu int) error {
	g := l.Gateways[0]
	return errors.Join(g.narrow("front", l.B.IPv4, l.Router.IPv4, mtu), g.narrow("front", l.B.IPv6, l.Router.IPv6, mtu))
}

// NarrowGatewayToNodes lowers the MTU of the first gateway's routes to the nodes.
func (l *Lab) NarrowGatewayToNodes(mtu int) error {
	var errs []error
	for _, n := range l.Nodes {
		errs = append(errs, l.Gateways[0].narrow("back", n.IPv4, netip.Addr{}, mtu), l.Gateways[0].narrow("back", n.IPv6, netip.Addr{}, mtu))
	}
	return errors.Join(errs...)
}

// NodesRouter adds a router on the nodes' segment, which sends packets for clients to the first gateway.
func (l *Lab) NodesRouter() (*Host, error) {
	b := &builder{lab: l.lab, back: l.back, patience: l.patience}
	r := b.host("nr", "198.51.100.253", "2001:db8:1::fd", forwarding...)
	if err := errors.Join(b.errs...); err != nil {
		return nil, err
	}
	b.plug(b.back, r, "back", r.IPv4.String()+"/24", r.IPv6.String()+"/64")
	b.check(r.Route("0.0.0.0/0", l.Gateways[0].IPv4.String()))
	b.check(r.Route("::/0", l.Gateways[0].IPv6.String()))
	return r, errors.Join(b.errs...)
}

// NarrowRouterToNodes makes the first gateway send packets for the nodes to the router, whose routes to them have this MTU. The gateway
// does not know of it.
func (l *Lab) NarrowRouterToNodes(router *Host, mtu int) error {
	var errs []error
	for _, n := range l.Nodes {
		for _, v4 := range []bool{true, false} {
			errs = append(errs, l.Gateways[0].narrow("back", n.Address(v4), router.Address(v4), 0), router.narrow("back", n.Address(v4), netip.Addr{}, mtu))
		}
	}
	return errors.Join(errs...)
}

// narrow replaces the host's route to an address by one over this interface, with an MTU if that is not 0. The route has a next hop if via is
// an address.
func (h *Host) narrow(name string, to, via netip.Addr, mtu int) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, MTU: mtu, MTULock: mtu != 0,
			Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}}
		if via.IsValid() {
			route.Gw = via.AsSlice()
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route of %s to %s: %w", h.Name, to, err)
		}
		return nil
	})
}

// A lost datagram is sent again after firstTry, then after twice that time, and so on.
const (
	tries    = 5
	firstTry = 100 * time.Millisecond
)

// FittingDatagrams sends a datagram to a server that echoes it, as large as the host's own link allows and with the request not to fragment
// it. If the host learns that it is too large, it sends one of the size that it has learned. It returns the MTU that the host knows in the
// end.
func (h *Host) FittingDatagrams(to netip.AddrPort) (mtu int, err error) {
	c, err := h.Dial("udp", to, From{})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	conn := c.(*net.UDPConn)
	headers := 20 + 8
	level, discover, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	knows := unix.IP_MTU
	if to.Addr().Is6() {
		headers, level, discover, value, knows = 40+8, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU
	}
	if err := socketOption(conn, func(fd int) error { return unix.SetsockoptInt(fd, level, discover, value) }); err != nil {
		return 0, err
	}
	var last error
	// The host learns with its first datagram that it is too large for the path. A dataplane that ends flows itself learns the same for its
	// own ones.
	for try := range tries {
		if err := socketOption(conn, func(fd int) (err error) { mtu, err = unix.GetsockoptInt(fd, level, knows); return err }); err != nil {
			return 0, err
		}
		if last = echo(conn, mtu-headers, h.patience.For(firstTry<<try)); last == nil {
			return mtu, nil
		}
	}
	return mtu, fmt.Errorf("a datagram with an MTU of %d: %w", mtu, last)
}

// FittingFragments sends a datagram of several fragments to a server that echoes it. Each host on the way may have to learn once that the
// fragments are too large.
func (h *Host) FittingFragments(to netip.AddrPort) error {
	c, err := h.Dial("udp", to, From{})
	if err != nil {
		return err
	}
	defer c.Close()
	for try := range tries {
		if err = echo(c, 3000, h.patience.For(firstTry<<try)); err == nil {
			break
		}
	}
	return err
}

func socketOption(c *net.UDPConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}
