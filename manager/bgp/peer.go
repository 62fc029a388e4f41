// Package bgp announces addresses to routers by BGP (RFC 4271) with an embedded speaker. Every gateway announces every address that its
// dataplane holds, each as a host route to itself, so that routers spread flows over gateways (ECMP). Nothing that routers offer is taken.
package bgp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Peer is a router and what it is told.
type Peer struct {
	// Name is for messages.
	Name    string
	Address netip.Addr
	Port    uint16
	// LocalASN and PeerASN are AS numbers of four bytes (RFC 6793).
	LocalASN, PeerASN uint32
	// Password signs the segments of the session (TCP MD5, RFC 2385); none if empty.
	Password string
	// HoldTime and Keepalive are in whole seconds (RFC 4271, section 4.2), as is ConnectRetry.
	HoldTime, Keepalive, ConnectRetry time.Duration
	// GracefulRestart is how long the router is to keep routes of a speaker that is gone (RFC 4724); 0 for not at all.
	GracefulRestart time.Duration
	// BFDInterval and BFDMultiplier detect that the other side is gone (RFC 5880); 0 for not at all.
	BFDInterval   time.Duration
	BFDMultiplier uint8
	// MultihopTTL is how many hops the router may be away, 0 for none. TTLSecurity is for a router without a hop (RFC 5082).
	MultihopTTL uint8
	TTLSecurity bool
	// IPv4 and IPv6 are the families of what is announced.
	IPv4, IPv6 bool
	// Communities are those of every route, as text (RFC 1997 and 8092, or well-known names). LocalPreference is for a router of the
	// own AS; nil leaves it to the protocol's 100.
	Communities     []string
	LocalPreference *uint32
}

// session is the part of a peer by which a session stands or falls: another one needs a new session.
func (p Peer) session() Peer {
	p.Communities, p.LocalPreference, p.BFDInterval, p.BFDMultiplier = nil, nil, 0, 0
	return p
}

func (p Peer) equal(o Peer) bool {
	return fmt.Sprintf("%+v", p.session()) == fmt.Sprintf("%+v", o.session())
}

// nextHops are this host's addresses that packets for the announced ones are to be sent to: by family, that of the session and one of
// the same interface.
type nextHops struct{ four, six netip.Addr }

// nextHopsTowards asks the kernel how the router is reached.
func nextHopsTowards(router netip.Addr) (nextHops, error) {
	own, err := sourceTowards(router)
	if err != nil {
		return nextHops{}, err
	}
	device, err := deviceOf(own)
	if err != nil {
		return nextHops{}, err
	}
	var hops nextHops
	hops.take(own)
	addresses, err := device.Addrs()
	if err != nil {
		return nextHops{}, err
	}
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() && !prefix.Addr().IsLinkLocalUnicast() {
			hops.take(prefix.Addr())
		}
	}
	return hops, nil
}

// take keeps the first address of each family.
func (h *nextHops) take(a netip.Addr) {
	switch a = a.Unmap(); {
	case a.Is4() && !h.four.IsValid():
		h.four = a
	case a.Is6() && !h.six.IsValid():
		h.six = a
	}
}

// sourceTowards is the own address that packets to the router bear. Nothing is sent.
func sourceTowards(router netip.Addr) (netip.Addr, error) {
	conn, err := net.Dial("udp", netip.AddrPortFrom(router, 179).String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no route to %s: %w", router, err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func deviceOf(own netip.Addr) (*net.Interface, error) {
	devices, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for i := range devices {
		addresses, err := devices[i].Addrs()
		if err != nil {
			continue // it has just gone
		}
		if slices.ContainsFunc(addresses, func(a net.Addr) bool { return strings.HasPrefix(a.String(), own.WithZone("").String()+"/") }) {
			return &devices[i], nil
		}
	}
	return nil, fmt.Errorf("no interface has the address %s", own)
}
