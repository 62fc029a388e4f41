package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/netlab"
)

// The addresses behind a router, which itself is .254 and ::fe on both segments:
//
//	remote segment      203.0.113.0/24  2001:db8:b::/64  client .100
//	external addresses  198.18.0.0/24   2001:db8:f::/64  on no segment: the router learns their routes by BGP
const (
	Router4                      = "192.0.2.254"
	router6                      = "2001:db8:c::fe"
	remote4, remote6             = "203.0.113.", "2001:db8:b::"
	RoutedPool4, RoutedPool6     = "198.18.0.0/24", "2001:db8:f::/64"
	RouterASN, GatewaysASN       = 64500, 64512
	RouterPassword               = "of the lab"
	BFDMilliseconds, BFDMultiply = 200, 3
)

// Router connects the clients' segment with a remote segment. It runs BIRD, which learns the routes of external addresses by BGP.
type Router struct {
	// Client is a host on the remote segment.
	Client *netlab.Namespace

	host    *netlab.Namespace
	process *Process
}

// RouterOptions are the options of a router.
type RouterOptions struct {
	// BIRD is the directory with BIRD (tools/unpack.sh router). If it is empty, the router runs no BGP.
	BIRD string
	// Gateways are the addresses of the BGP peers.
	Gateways []string
	// BFD and GracefulRestart switch these features on.
	BFD, GracefulRestart bool
}

// AddRouter adds a router and a client on its remote segment. Gateways reach that client by the router.
func (l *Lab) AddRouter(o RouterOptions, gateways ...*netlab.Namespace) (*Router, error) {
	host, err := l.net.Namespace("router", append(routerSysctls, "net/ipv4/conf/all/send_redirects=0", "net/ipv4/conf/default/send_redirects=0", "net/ipv4/fib_multipath_hash_policy=1", "net/ipv6/fib_multipath_hash_policy=1")...)
	if err != nil {
		return nil, err
	}
	client, err := l.net.Namespace("beyond")
	if err != nil {
		return nil, err
	}
	r := &Router{Client: client, host: host}
	err = errors.Join(
		l.net.Plug(l.clientsSwitch, "router", netlab.Interface{Namespace: host, Name: "clients", Addresses: []string{Router4 + "/24", router6 + "/64"}}),
		l.net.Link(netlab.Interface{Namespace: host, Name: "beyond", Addresses: []string{remote4 + "254/24", remote6 + "fe/64"}},
			netlab.Interface{Namespace: client, Name: "eth0", Addresses: []string{remote4 + "100/24", remote6 + "100/64"}}),
		client.Route("0.0.0.0/0", remote4+"254"), client.Route("::/0", remote6+"fe"))
	for _, g := range append(gateways, l.Client) {
		err = errors.Join(err, l.RouteToRemote(g))
	}
	err = errors.Join(err, l.Client.Route(RoutedPool4, Router4), l.Client.Route(RoutedPool6, router6))
	if err != nil {
		return nil, err
	}
	libraries, err := filepath.Glob(filepath.Join(o.BIRD, "usr/lib/*-linux-gnu"))
	if err != nil {
		return nil, err
	}
	if o.BIRD == "" {
		return r, nil
	}
	dir := filepath.Join(l.Dir, "router")
	config := filepath.Join(dir, "bird.conf")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(config, []byte(o.config()), 0o600)); err != nil {
		return nil, err
	}
	r.process, err = Start(host, l.Dir, "bird", "env", "LD_LIBRARY_PATH="+strings.Join(libraries, ":"),
		filepath.Join(o.BIRD, "usr/sbin/bird"), "-f", "-c", config, "-s", filepath.Join(dir, "control"), "-P", filepath.Join(dir, "pid"))
	return r, err
}

// RouteToRemote adds routes by the router to the remote segment to a host on the clients' segment.
func (l *Lab) RouteToRemote(host *netlab.Namespace) error {
	return errors.Join(host.Route(remote4+"0/24", Router4), host.Route(remote6+"/64", router6))
}

// Stop ends the router.
func (r *Router) Stop() {
	if r.process != nil {
		r.process.Kill()
	}
}

// Tail returns the end of the log.
func (r *Router) Tail() string { return r.process.Tail() }

// NextHops returns the addresses of the gateways over which the router currently spreads flows to an external address.
func (r *Router) NextHops(address netip.Addr) (nextHops []netip.Addr, err error) {
	family := unix.AF_INET
	if address.Is6() {
		family = unix.AF_INET6
	}
	err = r.host.Do(func() error {
		to := &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: to}, netlink.RT_FILTER_DST)
		if err != nil {
			return err
		}
		for _, route := range routes {
			hops := []net.IP{route.Gw}
			if len(route.MultiPath) > 0 {
				hops = nil
			}
			for _, hop := range route.MultiPath {
				hops = append(hops, hop.Gw)
			}
			for _, hop := range hops {
				if nextHop, ok := netip.AddrFromSlice(hop); ok {
					nextHops = append(nextHops, nextHop.Unmap())
				}
			}
		}
		return nil
	})
	return nextHops, err
}

// config returns the configuration of BIRD.
func (o RouterOptions) config() string {
	var b strings.Builder
	on := map[bool]string{true: "on", false: "off"}
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device { scan time 1; }\n", Router4)
	for _, family := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, "protocol kernel { %s { import none; export all; }; merge paths on; }\n", family)
	}
	fmt.Fprintf(&b, "protocol bfd { interface \"clients\" { min rx interval %d ms; min tx interval %[1]d ms; multiplier %d; }; }\n", BFDMilliseconds, BFDMultiply)
	for i, gateway := range o.Gateways {
		fmt.Fprintf(&b, "protocol bgp gateway%d {\n  local %s as %d; neighbor %s as %d; passive; error wait time 1, 2; error forget time 2; password \"%s\";\n  bfd %s; graceful restart %s;\n"+
			"  ipv4 { import all; export none; };\n  ipv6 { import all; export none; };\n}\n", i+1, Router4, RouterASN, gateway, GatewaysASN, RouterPassword, on[o.BFD], on[o.GracefulRestart])
	}
	return b.String()
}
