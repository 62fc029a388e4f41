package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Ping sends one echo request (RFC 792, RFC 4443) and waits for the reply.
func (h *Host) Ping(to netip.Addr) error { return h.PingOfSize(to, 6) }

// echoHeader is the length of the header of an echo request.
const echoHeader = 8

// LargestPayload is the number of bytes in the largest datagram of a family, and in the largest echo request: the length in the header of an
// IPv4 packet includes the header, that of an IPv6 packet does not.
func LargestPayload(v4 bool) int {
	if v4 {
		return 65535 - 20 - 8
	}
	return 65535 - 8
}

// PingOfSize sends one echo request with size bytes after its header, and waits for the reply with the same bytes.
func (h *Host) PingOfSize(to netip.Addr, size int) error {
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
	message := make([]byte, echoHeader+size)
	copy(message, []byte{request, 0, 0, 0, 0x4b, 0x4c, 0, 1})
	_, _ = (&Pattern{uint32(size)}).Read(message[echoHeader:])
	if to.Is4() {
		binary.BigEndian.PutUint16(message[2:], checksum(message)) // for IPv6 the kernel does it
	}
	if err := c.SetDeadline(time.Now().Add(h.patience.For(silentAfter))); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return fmt.Errorf("echo request of %d bytes to %s: %w", size, to, err)
	}
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := c.ReadFromIP(buffer) // Read would keep the IPv4 header
		if err != nil {
			return fmt.Errorf("echo of %d bytes to %s: %w", size, to, err)
		}
		if n == len(message) && buffer[0] == reply && string(buffer[4:n]) == string(message[4:]) {
			return nil
		}
	}
}

// checksum is the Internet checksum (RFC 1071).
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i]) << 8
			if i+1 < len(b) {
				sum += uint32(b[i+1])
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
