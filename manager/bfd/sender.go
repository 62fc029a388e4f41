package bfd

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// voice speaks to a neighbour, from an address of this host: a socket keeps the one that it began with, and the host may not have that any more.
type voice struct {
	address netip.Addr
	conn    *net.UDPConn // nil while there is no way to the neighbour
	// looked is when the address was looked at last.
	looked time.Time
}

// lookEvery is how often a voice looks whether its address is still this host's.
const lookEvery = time.Second

// say sends a packet. Who does not hear it is what this is about.
func (v *voice) say(p packet, now time.Time) {
	if v.conn != nil && now.Sub(v.looked) >= lookEvery {
		if v.looked = now; !v.isOwn() {
			v.close()
		}
	}
	if v.conn != nil {
		if _, err := v.conn.Write(p.bytes()); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			return // a neighbour that says that it does not listen is there
		}
		v.close()
	}
	conn, err := dial(v.address)
	if err != nil {
		return
	}
	v.conn, v.looked = conn, now
	_, _ = conn.Write(p.bytes())
}

// isOwn tells whether the address is still this host's: only such a one can be bound to. IPv6 sends from another one, too.
func (v *voice) isOwn() bool {
	own := *v.conn.LocalAddr().(*net.UDPAddr)
	own.Port = 0
	conn, err := net.ListenUDP("udp", &own)
	if err == nil {
		conn.Close()
	}
	return !errors.Is(err, syscall.EADDRNOTAVAIL)
}

func (v *voice) close() {
	if v.conn != nil {
		v.conn.Close()
		v.conn = nil
	}
}
