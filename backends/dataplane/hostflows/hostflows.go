// Package hostflows is what a host's kernel knows of flows beside a dataplane's own state: the entries of connection tracking, and the sockets of a
// proxy. Whoever ends a flow has to end it there as well.
package hostflows

import (
	"net"
	"net/netip"

	"kubelb.k8c.io/core/model"
)

// End ends all flows to the frontends. It deletes flows that connection tracking rewrites, whichever dataplane began them, and resets TCP
// connections to sockets of this host. The error is ErrSocketsStay where the kernel cannot end a socket.
func End(frontends map[model.FrontendKey]bool) error {
	if len(frontends) == 0 {
		return nil
	}
	if err := endTracked(frontends); err != nil {
		return err
	}
	return EndSockets(func(c Connection) bool {
		return frontends[model.FrontendKey{VIP: c.Local.Addr(), Protocol: model.TCP, Port: c.Local.Port()}]
	})
}

// endTracked reads the entries of a family, of which a busy host has many, only where the family has frontends.
func endTracked(frontends map[model.FrontendKey]bool) error {
	families := map[bool]bool{}
	for key := range frontends {
		families[key.VIP.Is4()] = true
	}
	for v4 := range families {
		err := EachTracked(v4, func(f *Flow) bool { return f.IsRewritten() && frontends[f.Frontend()] })
		if err != nil {
			return err
		}
	}
	return nil
}

// Connection is a TCP connection of a socket of this host.
type Connection struct{ Local, Remote netip.AddrPort }

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}
