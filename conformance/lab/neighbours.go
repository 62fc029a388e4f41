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

// resolved are the states of a neighbour that has answered.
const resolved = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE

// Resolves reports whether a host on the segment of eth0 answers ARP requests or neighbour solicitations for the address within that time.
func (h *Host) Resolves(address netip.Addr, within time.Duration) (answered bool, err error) {
	err = h.Do(func() (err error) {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		onLink := &netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}}
		if err := netlink.RouteReplace(onLink); err != nil {
			return fmt.Errorf("route to %s: %w", address, err)
		}
		defer func() { err = errors.Join(err, netlink.RouteDel(onLink)) }()
		conn, err := net.Dial("udp", netip.AddrPortFrom(address, 9).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		for begin := time.Now(); time.Since(begin) < within && !answered; time.Sleep(10 * time.Millisecond) {
			if _, err := conn.Write([]byte("?")); err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EHOSTUNREACH) {
				return err
			}
			if answered, err = isResolved(link, address); err != nil {
				return err
			}
		}
		return nil
	})
	return answered, err
}

// isResolved reports whether the neighbour's MAC address is known.
func isResolved(link netlink.Link, address netip.Addr) (bool, error) {
	neighbours, err := netlink.NeighList(link.Attrs().Index, familyOf(address))
	for _, n := range neighbours {
		if at, ok := netip.AddrFromSlice(n.IP); ok && at.Unmap() == address && n.State&resolved != 0 {
			return true, err
		}
	}
	return false, err
}

func familyOf(address netip.Addr) int {
	if address.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
