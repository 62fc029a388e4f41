// Package hostflows reads and ends flows that a host's kernel has apart from a dataplane's own state: entries of connection tracking, and sockets of a
// proxy. To end a flow, a dataplane has to end it there, too.
package hostflows

import (
	"net"
	"net/netip"

	"kubelb.k8c.io/core/model"
)

// End ends all flows to the frontends. It deletes flows that connection tracking rewrites, of any dataplane, and resets TCP connections to
// sockets of this host. The error is ErrCannotEndSockets if the kernel cannot end sockets.
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

// endTracked reads the entries of a family only if it has frontends: a busy host has many entries.
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
