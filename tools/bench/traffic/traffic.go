// Package traffic measures what clients of a gateway see, for each dataplane, for plain routing and for two proxies, in one run.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/netlab"
)

// Options are the options of a measurement.
type Options struct {
	// Rounds is how often each target is measured. Each round measures all targets in random order.
	Rounds int
	// Loads are the names of loads; empty means all.
	Loads []string
	// Long is the duration of each load.
	Long time.Duration
	// Proxies is the directory with HAProxy and nginx. If it is empty, they are not measured.
	Proxies string
	// State is a directory for the state of plugins and the files of proxies.
	State string
	// Log gets the logs of plugins and proxies, Progress a line for each round.
	Log, Progress io.Writer
}

// Result has the measurements of a target.
type Result struct {
	Target string
	// Reference is the name of the target for comparison: plain routing between interfaces of the same kind.
	Reference string
	// Samples are the samples of each load, one for each round. There are none if the target cannot carry the load.
	Samples map[string][]Sample
}

// Names of plain routing.
const (
	Plain       = "plain routing"
	PlainFrames = "plain routing, frames"
)

// target is a gateway to measure.
type target struct {
	name string
	// frames means that the interfaces carry single frames, like a cable, instead of large packets between veth interfaces.
	frames bool
	// noDatagrams means that the target carries TCP only.
	noDatagrams bool
	// backend, with options, serves the VIP, or a proxy that start starts. Without both the gateway only routes.
	backend string
	options map[string]string
	start   func(*gateway, Options) error
}

func targets(o Options) []target {
	all := []target{
		{name: Plain},
		{name: "eBPF, tcx", backend: "ebpf", options: map[string]string{"xdp": "off"}},
		{name: "nftables", backend: "nftables"},
		{name: "Envoy", backend: "envoy"},
		{name: PlainFrames, frames: true},
		{name: "eBPF, XDP, frames", frames: true, backend: "ebpf", options: map[string]string{"xdp": "native"}},
		{name: "eBPF, tcx, frames", frames: true, backend: "ebpf", options: map[string]string{"xdp": "off"}},
		{name: "nftables, frames", frames: true, backend: "nftables"},
	}
	if o.Proxies != "" {
		all = append(all, target{name: "HAProxy, mode tcp", noDatagrams: true, start: startHAProxy}, target{name: "nginx, stream", start: startNginx})
	}
	return all
}

// gateway is a host between the client and the nodes.
type gateway struct {
	*netlab.Namespace
	target
	to       []netip.AddrPort
	vip      netip.Addr
	nodes    []netip.Addr
	process  cases.Process
	endProxy func()
}

const (
	hosts            = 2 // nodes
	addressesOfANode = 4
	servedPort       = 80
)

// Run measures all targets.
func Run(ctx context.Context, o Options) (results []Result, err error) {
	lab := netlab.New("klbench")
	defer func() { err = errors.Join(err, lab.Close()) }()
	s := &setup{lab: lab, options: o}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	if err := s.build(ctx, func(target) bool { return true }); err != nil {
		return nil, err
	}
	for _, g := range s.gateways {
		reference := Plain
		if g.frames {
			reference = PlainFrames
		}
		results = append(results, Result{Target: g.name, Reference: reference, Samples: map[string][]Sample{}})
	}
	for round := range o.Rounds {
		for _, l := range Loads() {
			if len(o.Loads) > 0 && !slices.Contains(o.Loads, l.Name) {
				continue
			}
			for _, i := range rand.Perm(len(s.gateways)) {
				if err := ctx.Err(); err != nil {
					return results, err
				}
				g := s.gateways[i]
				if l.Datagrams && g.noDatagrams {
					continue
				}
				sample, err := l.run(s.client, g.to, o.Long, s.counter.arrived)
				if err != nil {
					return results, fmt.Errorf("%s, %s: %w", g.name, l.Name, err)
				}
				results[i].Samples[l.Name] = append(results[i].Samples[l.Name], sample)
			}
			plain := results[0].Samples[l.Name][round]
			fmt.Fprintf(o.Progress, "round %d of %d, %s: plain routing %.0f %s\n", round+1, o.Rounds, l.Name, plain.Value, l.Unit)
		}
	}
	return results, nil
}

// setup is the network with its servers and gateways.
type setup struct {
	lab      *netlab.Lab
	options  Options
	client   *netlab.Namespace
	nodes    [hosts]*netlab.Namespace
	servers  []*server
	counter  *counter
	gateways []*gateway
}

// build makes the client, the nodes, and a gateway for each wanted target.
func (s *setup) build(ctx context.Context, wanted func(target) bool) (err error) {
	if s.client, err = s.lab.Namespace("client", "net/ipv4/ip_local_port_range=1024 65535", "net/ipv4/tcp_tw_reuse=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"); err != nil {
		return err
	}
	if s.counter, err = newCounter(); err != nil {
		return err
	}
	for k := range s.nodes {
		if s.nodes[k], err = s.lab.Namespace(fmt.Sprintf("node%d", k), "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"); err != nil {
			return err
		}
		served, err := serve(s.nodes[k])
		if err != nil {
			return err
		}
		s.servers = append(s.servers, served)
	}
	for i, t := range targets(s.options) {
		if !wanted(t) {
			continue
		}
		g, err := s.add(i+1, t)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		s.gateways = append(s.gateways, g)
		if err := g.startTarget(ctx, s.options); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

// add makes gateway N between the client and the nodes: 10.1.N.0/24 to the client, 10.20.N.0/24 and 10.21.N.0/24 to the nodes, VIP
// 10.9.N.1.
func (s *setup) add(number int, t target) (_ *gateway, err error) {
	g := &gateway{target: t, vip: netip.AddrFrom4([4]byte{10, 9, byte(number), 1})}
	if g.Namespace, err = s.lab.Namespace(fmt.Sprintf("gateway%d", number), "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"); err != nil {
		return nil, err
	}
	clientLink := fmt.Sprintf("c%d", number)
	err = errors.Join(g.MountBPF(),
		s.lab.Link(netlab.Interface{Namespace: g.Namespace, Name: "front", Addresses: []string{fmt.Sprintf("10.1.%d.1/24", number)}},
			netlab.Interface{Namespace: s.client, Name: clientLink, Addresses: []string{fmt.Sprintf("10.1.%d.2/24", number)}}))
	if err != nil {
		return nil, err
	}
	ends := []netlab.Interface{{Namespace: g.Namespace, Name: "front"}, {Namespace: s.client, Name: clientLink}}
	by := fmt.Sprintf("10.1.%d.1", number)
	if err := s.client.Route(g.vip.String()+"/32", by); err != nil {
		return nil, err
	}
	for k, node := range s.nodes {
		nodeEnd := netlab.Interface{Namespace: node, Name: fmt.Sprintf("n%d", number)}
		for a := range addressesOfANode {
			address := netip.AddrFrom4([4]byte{10, byte(20 + k), byte(number), byte(2 + a)})
			g.nodes = append(g.nodes, address)
			nodeEnd.Addresses = append(nodeEnd.Addresses, address.String()+"/24")
		}
		back := netlab.Interface{Namespace: g.Namespace, Name: fmt.Sprintf("back%d", k), Addresses: []string{fmt.Sprintf("10.%d.%d.1/24", 20+k, number)}}
		err := errors.Join(s.lab.Link(back, nodeEnd), node.Route(fmt.Sprintf("10.1.%d.0/24", number), fmt.Sprintf("10.%d.%d.1", 20+k, number)),
			s.client.Route(fmt.Sprintf("10.%d.%d.0/24", 20+k, number), by), s.counter.attach(node, nodeEnd.Name))
		if err != nil {
			return nil, err
		}
		for _, address := range g.nodes[k*addressesOfANode:] {
			if err := s.servers[k].answerAt(address); err != nil {
				return nil, err
			}
		}
		ends = append(ends, back, nodeEnd)
	}
	if t.frames {
		for _, e := range ends {
			// Checksum offload is switched off, too, because XDP programs do not see that a checksum is missing.
			if err := errors.Join(e.Namespace.DisableOffloads(e.Name), e.Namespace.AcceptXDPFrames(e.Name)); err != nil {
				return nil, err
			}
		}
	}
	if t.start != nil || t.backend != "" {
		g.to = []netip.AddrPort{netip.AddrPortFrom(g.vip, servedPort)}
		return g, nil
	}
	for _, n := range g.nodes {
		g.to = append(g.to, netip.AddrPortFrom(n, nodePort))
	}
	return g, nil
}

func (s *setup) close(ctx context.Context) error {
	var errs []error
	for _, g := range s.gateways {
		if g.process != nil {
			errs = append(errs, g.process.Close(ctx, true))
			g.process.Stop()
		}
		if g.endProxy != nil {
			g.endProxy()
		}
	}
	for _, served := range s.servers {
		errs = append(errs, served.close())
	}
	if s.counter != nil {
		errs = append(errs, s.counter.close())
	}
	return errors.Join(errs...)
}
