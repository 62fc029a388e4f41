package bfd

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// sender sends packets to a neighbour. It opens a new socket if the source address of the present one is not this host's any more.
type sender struct {
	address netip.Addr
	conn    *net.UDPConn // nil while there is no route to the neighbour
	// checked is when the source address was checked last.
	checked time.Time
}

// addressCheckInterval is the interval of checks of the source address.
const addressCheckInterval = time.Second

// send sends a packet. It ignores errors: the neighbour detects missing packets.
func (v *sender) send(p packet, now time.Time) {
	if v.conn != nil && now.Sub(v.checked) >= addressCheckInterval {
		if v.checked = now; !v.isOwn() {
			v.close()
		}
	}
	if v.conn != nil {
		if _, err := v.conn.Write(p.bytes()); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			return // an ICMP error of the neighbour shows that there is a route to it
		}
		v.close()
	}
	conn, err := dial(v.address)
	if err != nil {
		return
	}
	v.conn, v.checked = conn, now
	_, _ = conn.Write(p.bytes())
}

// isOwn reports whether the source address is still this host's: a socket cannot be bound to another address. IPv6 would go on to send from it.
func (v *sender) isOwn() bool {
	own := *v.conn.LocalAddr().(*net.UDPAddr)
	own.Port = 0
	conn, err := net.ListenUDP("udp", &own)
	if err == nil {
		conn.Close()
	}
	return !errors.Is(err, syscall.EADDRNOTAVAIL)
}

func (v *sender) close() {
	if v.conn != nil {
		v.conn.Close()
		v.conn = nil
	}
}
