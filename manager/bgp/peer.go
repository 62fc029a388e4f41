// Package bgp announces addresses to routers by BGP (RFC 4271) with an embedded speaker. Each gateway announces each address that its
// dataplane holds as a host route to itself, so that routers distribute flows to gateways (ECMP). The speaker ignores the routes of routers.
package bgp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Peer is a router and the settings of its session.
type Peer struct {
	// Name is the name of the BGPPeer, for messages.
	Name    string
	Address netip.Addr
	Port    uint16
	// LocalASN and PeerASN are AS numbers of four bytes (RFC 6793).
	LocalASN, PeerASN uint32
	// Password signs the segments of the session (TCP MD5, RFC 2385). Empty means no signature.
	Password string
	// HoldTime and Keepalive are in whole seconds (RFC 4271, section 4.2), as is ConnectRetry.
	HoldTime, Keepalive, ConnectRetry time.Duration
	// GracefulRestart is how long the router keeps the routes of a speaker that is gone (RFC 4724). 0 means not at all.
	GracefulRestart time.Duration
	// BFDInterval and BFDMultiplier are the timers of BFD (RFC 5880). 0 means no BFD.
	BFDInterval   time.Duration
	BFDMultiplier uint8
	// MultihopTTL is the greatest number of hops to the router, 0 for a router on the segment. TTLSecurity is GTSM, for a router on the segment (RFC 5082).
	MultihopTTL uint8
	TTLSecurity bool
	// IPv4 and IPv6 are the families of the announced addresses.
	IPv4, IPv6 bool
	// Communities are the communities of each route, as text (RFC 1997 and 8092, or well-known names). LocalPreference is for a router in the
	// same AS; nil means the default of 100.
	Communities     []string
	LocalPreference *uint32
}

// session returns the settings whose change needs a new session.
func (p Peer) session() Peer {
	p.Communities, p.LocalPreference, p.BFDInterval, p.BFDMultiplier = nil, nil, 0, 0
	return p
}

func (p Peer) equal(o Peer) bool {
	return fmt.Sprintf("%+v", p.session()) == fmt.Sprintf("%+v", o.session())
}

// nextHops are the addresses of this host that are the next hops of announced routes, by family: the address of the session, and one of the
// same interface.
type nextHops struct{ four, six netip.Addr }

// nextHopsTowards asks the kernel for the route to the router.
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
	hops.add(own)
	addresses, err := device.Addrs()
	if err != nil {
		return nextHops{}, err
	}
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() && !prefix.Addr().IsLinkLocalUnicast() {
			hops.add(prefix.Addr())
		}
	}
	return hops, nil
}

// add keeps the first address of each family.
func (h *nextHops) add(a netip.Addr) {
	switch a = a.Unmap(); {
	case a.Is4() && !h.four.IsValid():
		h.four = a
	case a.Is6() && !h.six.IsValid():
		h.six = a
	}
}

// sourceTowards returns the source address of packets to the router. It sends none.
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
