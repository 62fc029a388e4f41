// Package lab is the network in which a dataplane is tested: hosts as network namespaces, real sockets, real packets.
//
//	client a ──┐                 ┌── gateway g0 ──┐
//	           ├── front (L2) ───┤                ├── back (L2) ── nodes n0 … n3
//	client b ─ router ───────────┼── gateway g1 ──┤
//	              └──────────────┴────────────────┘
//
// Every host has both families. The router forwards packets unchanged and without state. Nodes send packets to clients by the
// router, and packets to gateways directly. VIPs are routed to one gateway, which the case selects. A case may add a router between the first
// gateway and the nodes, on the nodes' segment.
//
// All links behave like cables: checksums are computed and verified, and packets are not merged or split.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	"kubelb.k8c.io/conformance/netlab"
)

// Prefix is the prefix of the names of all namespaces of labs.
const Prefix = "klconf"

// Numbers of hosts.
const (
	Gateways = 3
	Nodes    = 4
)

// Lab is the network with its hosts.
type Lab struct {
	// A is on the clients' segment, B behind the router.
	A, B, Router *Host
	Gateways     [Gateways]*Host
	Nodes        [Nodes]*Host

	lab *netlab.Lab
	// back is the switch of the nodes' segment.
	back     *netlab.Namespace
	patience Patience
}

// Host is one host of the lab.
type Host struct {
	*netlab.Namespace
	// IPv4 and IPv6 are the host's addresses; a gateway's are those on the nodes' segment.
	IPv4, IPv6 netip.Addr
	// datagrams counts the UDP flows whose port the host selected.
	datagrams atomic.Uint32
	patience  Patience
}

// Address returns the host's address of a family.
func (h *Host) Address(v4 bool) netip.Addr {
	if v4 {
		return h.IPv4
	}
	return h.IPv6
}

// vipNetworks are the networks of the external addresses of all cases.
var vipNetworks = [...]string{"203.0.113.0/24", "2001:db8:f::/64"}

// VIP returns the i-th external address of a family, i from 1 to 254.
func VIP(v4 bool, i int) netip.Addr { return pick(v4, "203.0.113.0", "2001:db8:f::", i) }

func pick(v4 bool, four, six string, i int) netip.Addr {
	if v4 {
		bytes := netip.MustParseAddr(four).As4()
		bytes[3] = byte(i)
		return netip.AddrFrom4(bytes)
	}
	bytes := netip.MustParseAddr(six).As16()
	bytes[15] = byte(i)
	return netip.AddrFrom16(bytes)
}

// New builds the lab. It needs root. Close removes it.
func New(p Patience) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: it makes network namespaces")
	}
	if _, err := netlab.Sweep(Prefix); err != nil {
		return nil, err
	}
	b := &builder{lab: netlab.New(Prefix), patience: p}
	l := b.build()
	if err := errors.Join(b.errs...); err != nil {
		return nil, errors.Join(fmt.Errorf("build the lab: %w", err), b.lab.Close())
	}
	return l, nil
}

// EndProcesses kills all processes on the hosts.
func (l *Lab) EndProcesses() error { return l.lab.EndProcesses() }

// Close removes all hosts, and ends their processes.
func (l *Lab) Close() error { return l.lab.Close() }

// builder collects errors, so that build needs no check after each step.
type builder struct {
	lab         *netlab.Lab
	front, back *netlab.Namespace
	patience    Patience
	errs        []error
}

func (b *builder) check(err error) { b.errs = append(b.errs, err) }

func (b *builder) build() *Lab {
	l := &Lab{lab: b.lab}
	var err error
	b.front, err = b.lab.Switch("front")
	b.check(err)
	b.back, err = b.lab.Switch("back")
	b.check(err)
	l.back, l.patience = b.back, b.patience
	l.A, l.B = b.host("a", "192.0.2.100", "2001:db8:c::100"), b.host("b", "198.18.1.100", "2001:db8:d::100")
	l.Router = b.host("router", "192.0.2.254", "2001:db8:c::fe", forwarding...)
	for i := range l.Gateways {
		l.Gateways[i] = b.host(fmt.Sprintf("g%d", i), fmt.Sprintf("198.51.100.%d", 1+i), fmt.Sprintf("2001:db8:1::%x", 1+i), forwarding...)
		b.check(l.Gateways[i].MountBPF())
		b.check(l.Gateways[i].MountMemory())
	}
	for i := range l.Nodes {
		l.Nodes[i] = b.host(fmt.Sprintf("n%d", i), EndpointAddress(true, i).String(), EndpointAddress(false, i).String())
	}
	if errors.Join(b.errs...) != nil {
		return nil
	}
	b.wire(l)
	b.routes(l)
	b.check(l.RouteVIPs(0))
	return l
}

// forwarding are the sysctls of a router. Reverse-path filters would drop packets that return another way.
var forwarding = []string{"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0",
	"net/ipv4/conf/all/send_redirects=0", "net/ipv4/conf/default/send_redirects=0"}

func (b *builder) host(name, v4, v6 string, sysctls ...string) *Host {
	// With duplicate address detection, link-local addresses would be unusable for a second.
	ns, err := b.lab.Namespace(name, append([]string{"net/ipv6/conf/default/accept_dad=0"}, sysctls...)...)
	b.check(err)
	return &Host{patience: b.patience, Namespace: ns, IPv4: netip.MustParseAddr(v4), IPv6: netip.MustParseAddr(v6)}
}

func portOf(h *Host, name string) string { return name + "-" + h.Name[len(h.Name)-2:] }

func (b *builder) plug(sw *netlab.Namespace, h *Host, name string, addresses ...string) {
	port := portOf(h, name)
	b.check(b.lab.Plug(sw, port, netlab.Interface{Namespace: h.Namespace, Name: name, Addresses: addresses}))
	b.check(h.DisableOffloads(name))
	b.check(sw.DisableOffloads(port))
}

func (b *builder) wire(l *Lab) {
	b.plug(b.front, l.A, "eth0", "192.0.2.100/24", "2001:db8:c::100/64")
	b.plug(b.front, l.Router, "front", "192.0.2.254/24", "2001:db8:c::fe/64")
	b.plug(b.back, l.Router, "back", "198.51.100.254/24", "2001:db8:1::fe/64")
	b.check(b.lab.Link(netlab.Interface{Namespace: l.B.Namespace, Name: "eth0", Addresses: []string{"198.18.1.100/24", "2001:db8:d::100/64"}},
		netlab.Interface{Namespace: l.Router.Namespace, Name: "b", Addresses: []string{"198.18.1.1/24", "2001:db8:d::1/64"}}))
	b.check(l.B.DisableOffloads("eth0"))
	b.check(l.Router.DisableOffloads("b"))
	for i, g := range l.Gateways {
		b.plug(b.front, g, "front", fmt.Sprintf("192.0.2.%d/24", 1+i), fmt.Sprintf("2001:db8:c::%x/64", 1+i))
		b.plug(b.back, g, "back", g.IPv4.String()+"/24", g.IPv6.String()+"/64")
		b.check(b.front.AcceptXDPFrames(portOf(g, "front")))
		b.check(b.back.AcceptXDPFrames(portOf(g, "back")))
	}
	for i, n := range l.Nodes {
		var addresses []string
		for e := i; e < endpoints; e += Nodes {
			addresses = append(addresses, EndpointAddress(true, e).String()+"/24", EndpointAddress(false, e).String()+"/64")
		}
		b.plug(b.back, n, "eth0", addresses...)
	}
}

func (b *builder) routes(l *Lab) {
	for _, h := range l.Nodes {
		b.check(h.Route("0.0.0.0/0", "198.51.100.254"))
		b.check(h.Route("::/0", "2001:db8:1::fe"))
	}
	for _, h := range append([]*Host{l.A}, l.Gateways[:]...) {
		b.check(h.Route("0.0.0.0/0", "192.0.2.254"))
		b.check(h.Route("::/0", "2001:db8:c::fe"))
	}
	b.check(l.B.Route("0.0.0.0/0", "198.18.1.1"))
	b.check(l.B.Route("::/0", "2001:db8:d::1"))
}

// GatewayAddress returns a gateway's address on the clients' segment.
func (l *Lab) GatewayAddress(v4 bool, gateway int) netip.Addr {
	return pick(v4, "192.0.2.0", "2001:db8:c::", 1+gateway)
}

// RouteVIPs routes packets for VIPs to one gateway.
func (l *Lab) RouteVIPs(gateway int) error {
	var errs []error
	for _, h := range []*Host{l.A, l.Router} {
		errs = append(errs, h.Route(vipNetworks[0], fmt.Sprintf("192.0.2.%d", 1+gateway)), h.Route(vipNetworks[1], fmt.Sprintf("2001:db8:c::%x", 1+gateway)))
	}
	return errors.Join(errs...)
}

// RouteNodesVia makes nodes send packets for clients to a gateway, or to the router if gateway is -1. The forwarding mode
// transparent needs a gateway.
func (l *Lab) RouteNodesVia(gateway int) error {
	v4, v6 := "198.51.100.254", "2001:db8:1::fe"
	if gateway >= 0 {
		v4, v6 = l.Gateways[gateway].IPv4.String(), l.Gateways[gateway].IPv6.String()
	}
	var errs []error
	for _, n := range l.Nodes {
		errs = append(errs, n.Route("0.0.0.0/0", v4), n.Route("::/0", v6))
	}
	return errors.Join(errs...)
}

// Hosts returns all hosts.
func (l *Lab) Hosts() []*Host {
	return append(append([]*Host{l.A, l.B, l.Router}, l.Gateways[:]...), l.Nodes[:]...)
}
