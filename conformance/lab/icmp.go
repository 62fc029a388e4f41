package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Ping sends one echo request (RFC 792, RFC 4443) and waits for the reply.
func (h *Host) Ping(to netip.Addr) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	var c *net.IPConn
	err := h.Do(func() (err error) {
		c, err = net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()})
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	message := []byte{request, 0, 0, 0, 0x4b, 0x4c, 0, 1, 'k', 'u', 'b', 'e', 'l', 'b'}
	if to.Is4() {
		binary.BigEndian.PutUint16(message[2:], checksum(message)) // for IPv6 the kernel does it
	}
	if err := c.SetDeadline(time.Now().Add(h.patience.For(silentAfter))); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	buffer := make([]byte, 1500)
	for {
		n, _, err := c.ReadFromIP(buffer) // Read would keep the IPv4 header
		if err != nil {
			return fmt.Errorf("echo to %s: %w", to, err)
		}
		if n == len(message) && buffer[0] == reply && string(buffer[4:n]) == string(message[4:]) {
			return nil
		}
	}
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// NarrowPathToB lowers the MTU of the router's route to client b. Neither end knows of it, because their links carry larger
// packets.
func (l *Lab) NarrowPathToB(mtu int) error {
	return l.Router.Do(func() error {
		link, err := netlink.LinkByName("b")
		if err != nil {
			return err
		}
		for _, network := range []string{"198.18.1.100/32", "2001:db8:d::100/128"} {
			_, dst, err := net.ParseCIDR(network)
			if err != nil {
				return err
			}
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, MTU: mtu, MTULock: true}); err != nil {
				return fmt.Errorf("route to %s: %w", network, err)
			}
		}
		return nil
	})
}
