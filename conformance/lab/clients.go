package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
)

// PortsRest is for how long a port rests after its host has ended a connection first, where TakePortsAgain has been called: a segment of the
// former connection is told by its timestamp then, which is of another second (RFC 6191).
const PortsRest = 1200 * time.Millisecond

// TakePortsAgain lets the host open a connection between the same ports again soon after it has ended one first.
func (h *Host) TakePortsAgain() error {
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("1"), 0o644); err != nil {
			return fmt.Errorf("let ports be taken again: %w", err)
		}
		return nil
	})
}

// firstClient is where the addresses of clients begin that are on A besides its own.
const firstClient = 120

// Clients gives A n addresses more of the family, up to 100, from which flows may begin. The routes of gateways lead back to them.
func (l *Lab) Clients(v4 bool, n int) ([]From, error) {
	var out []From
	err := l.A.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for i := range n {
			a := pick(v4, "192.0.2.0", "2001:db8:c::", firstClient+i)
			bits := a.BitLen() / 2
			if v4 {
				bits = 24
			}
			address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
			if !v4 {
				address.Flags = 0x02 // IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, address); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("address %s: %w", a, err)
			}
			out = append(out, From{Address: a})
		}
		return nil
	})
	return out, err
}
