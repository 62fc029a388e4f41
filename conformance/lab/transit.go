package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteNodesSegmentVia makes client A reach the nodes' segment by a gateway instead of the router.
func (l *Lab) RouteNodesSegmentVia(gateway int) error {
	return errors.Join(l.A.Route("198.51.100.0/24", fmt.Sprintf("192.0.2.%d", 1+gateway)), l.A.Route("2001:db8:1::/64", fmt.Sprintf("2001:db8:c::%x", 1+gateway)))
}

// AddAddress gives the host an address of its own.
func (h *Host) AddAddress(a netip.Addr) error {
	return h.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		if a.Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(lo, address)
	})
}

// ServeAt answers on a TCP and a UDP port of one address until the server is closed.
func (h *Host) ServeAt(at netip.AddrPort) (*Server, error) {
	s := &Server{open: map[net.Conn]bool{}}
	err := h.Do(func() (err error) {
		if s.listener, err = net.Listen("tcp", at.String()); err != nil {
			return err
		}
		packets, err := net.ListenPacket("udp", at.String())
		if err == nil {
			s.packets = append(s.packets, packets)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve %s on %s: %w", at, h.Name, err), s.Close())
	}
	go s.accept()
	go s.answerDatagrams(s.packets[0])
	return s, nil
}

// SendAllErrors makes the host send as many ICMP errors as it can. By default the kernel sends one a second to each host.
func (h *Host) SendAllErrors() error {
	return h.Do(func() error {
		var errs []error
		for _, name := range []string{"ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"} {
			errs = append(errs, os.WriteFile("/proc/sys/net/"+name, []byte("0"), 0o644))
		}
		return errors.Join(errs...)
	})
}

// Masquerade makes the host rewrite the source of connections to a port, as a router to the Internet does.
func (h *Host) Masquerade(port uint16) error {
	return h.Do(func() error {
		_, err := nft(fmt.Sprintf(`add table inet foreign-nat
			add chain inet foreign-nat leave { type nat hook postrouting priority srcnat; }
			add rule inet foreign-nat leave tcp dport %d masquerade`, port))
		return err
	})
}

// ExpiresOnTheWay sends a datagram that may pass no router, and reports whether a router answers that its time was exceeded.
func (h *Host) ExpiresOnTheWay(to netip.AddrPort) error {
	c, err := h.Dial("udp", to, From{})
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	level, hops, errs := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVERR
	if to.Addr().Is6() {
		level, hops, errs = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = errors.Join(unix.SetsockoptInt(int(fd), level, hops, 1), unix.SetsockoptInt(int(fd), level, errs, 1))
	})
	if err := errors.Join(err, set, c.SetDeadline(time.Now().Add(h.patience.For(lostAfter)))); err != nil {
		return err
	}
	if _, err := c.Write([]byte(askWho)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.EHOSTUNREACH) {
		return fmt.Errorf("a datagram to %s that may pass no router: %v", to, err)
	}
	return nil
}
