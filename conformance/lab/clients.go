package lab

import (
	"fmt"
	"net/netip"
	"os"
	"time"
)

// PortReuseDelay is how long a host that closed a connection first waits before it can reuse the port, after AllowPortReuse. The
// kernel recognises segments of the former connection by their timestamps, which have to be a second older (RFC 6191).
const PortReuseDelay = 1200 * time.Millisecond

// AllowPortReuse lets the host reuse a port soon after it closed a connection from there first.
func (h *Host) AllowPortReuse() error {
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("1"), 0o644); err != nil {
			return fmt.Errorf("let the host reuse ports: %w", err)
		}
		return nil
	})
}

// firstClientByte is the last byte of the first additional address of A.
const firstClientByte = 120

// Clients adds n client addresses of the family to A, at most 100. Gateways reach them.
func (l *Lab) Clients(v4 bool, n int) ([]From, error) {
	var out []From
	err := l.A.Do(func() error {
		for i := range n {
			a := l.ClientAddress(v4, firstClientByte+i)
			if err := addAddress("eth0", a); err != nil {
				return err
			}
			out = append(out, From{Address: a})
		}
		return nil
	})
	return out, err
}

// ClientAddress returns the address of the clients' segment with this last byte.
func (l *Lab) ClientAddress(v4 bool, last int) netip.Addr {
	return pick(v4, "192.0.2.0", "2001:db8:c::", last)
}
