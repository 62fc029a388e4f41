// Package bench measures the cost of a packet on a gateway, for each dataplane and for plain routing, in one run.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// Options are the options of a measurement.
type Options struct {
	// Rounds is how often each row is measured. Each round measures all rows in random order.
	Rounds int
	// Packets is the number of packets for each row in a round, by default a million. Under emulation a few are enough, because emulators count
	// instructions.
	Packets uint32
	// Only names the groups of rows to measure in addition to plain routing: xdp, tcx, nftables, nftables-50k, flowtable, kube-proxy. Empty means all.
	Only []string
	// KubeProxy is the path of kube-proxy. If it is empty, kube-proxy is left out.
	KubeProxy string
	// State is a directory for the state of plugins.
	State string
	// Log gets the logs of plugins, Progress a line for each round.
	Log, Progress io.Writer
}

// Row has the measurements of one path.
type Row struct {
	Name string
	// Nanoseconds are the processor times of a packet, by round.
	Nanoseconds []float64
	// Arrived is the share of packets that reached the nodes.
	Arrived float64
}

// Reference is the name of the row with which all others are compared.
const Reference = "plain routing"

// Ratios returns the ratios to the reference in the same rounds.
func (r Row) Ratios(reference Row) []float64 {
	out := make([]float64, len(r.Nanoseconds))
	for i, n := range r.Nanoseconds {
		out[i] = n / reference.Nanoseconds[i]
	}
	return out
}

// Median returns the median of values.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// The numbers of flows, frontends and packets of rows.
const (
	fewFlows, manyFlows = 1 << 10, 1 << 20
	newFlows            = 1 << 30

	fewFrontends, manyFrontends = 10, 50_000

	packets    = 1_000_000
	newPackets = 50_000
)

// path is a path of packets to measure.
type path struct {
	name    string
	gateway *gateway
	frame   []byte
	flows   uint32
	packets uint32
	// byXDP means that the generator passes packets to the gateway's XDP program.
	byXDP  bool
	result int32
	// before prepares each round.
	before func() error
	lost   bool // no packet is meant to arrive
}

var vip = netip.MustParseAddr("203.0.113.1")

const servedPort, directPort = 80, 81

// snapshot returns records with frontends on ports 80 (nat) and 81 (direct) of 203.0.113.1, and on other addresses, all with the same pool.
func snapshot(frontends int, direct bool) model.Snapshot {
	pool := model.Pool{ID: "t/nodes", Tenant: "t"}
	node := firstNode
	for range nodes {
		pool.Endpoints = append(pool.Endpoints, model.Endpoint{ID: node.String(), Address: node, Weight: 1})
		node = node.Next()
	}
	s := model.Snapshot{Pools: []model.Pool{pool}}
	add := func(vip netip.Addr, port uint16, forwarding model.Forwarding) {
		s.Frontends = append(s.Frontends, model.Frontend{FrontendKey: model.FrontendKey{VIP: vip, Protocol: model.UDP, Port: port},
			Owner: model.ObjectName{Namespace: "tenant-t", Name: "s"}, Tenant: "t", Pool: pool.ID, TargetPort: 30080, Forwarding: forwarding})
	}
	add(vip, servedPort, model.NAT)
	if direct {
		add(vip, directPort, model.Direct)
	}
	for i := range frontends - 1 {
		add(netip.AddrFrom4([4]byte{100, 64 + byte(i>>16), byte(i >> 8), byte(i)}), servedPort, model.NAT)
	}
	return s
}

// Run measures all paths.
func Run(ctx context.Context, o Options) (rows []Row, err error) {
	lab := netlab.New("klbench")
	defer func() { err = errors.Join(err, lab.Close()) }()
	b := &builder{ctx: ctx, lab: lab, options: o}
	defer func() { err = errors.Join(err, b.close()) }()
	paths, err := b.paths()
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		rows = append(rows, Row{Name: p.name})
	}
	for round := range o.Rounds {
		for _, i := range rand.Perm(len(paths)) {
			if err := ctx.Err(); err != nil {
				return rows, err
			}
			if err := rows[i].measure(paths[i], cmp.Or(o.Packets, packets)); err != nil {
				return rows, fmt.Errorf("%s: %w", paths[i].name, err)
			}
		}
		fmt.Fprintf(o.Progress, "round %d of %d: plain routing %.0f ns\n", round+1, o.Rounds, rows[1].Nanoseconds[round])
	}
	return rows, nil
}

// measure measures the path once, with its own number of packets or the default one.
func (r *Row) measure(p path, defaultPackets uint32) error {
	return p.gateway.Do(func() error {
		if p.before != nil {
			if err := p.before(); err != nil {
				return err
			}
		}
		g, close, err := p.generator()
		if err != nil {
			return err
		}
		defer close()
		if p.flows != newFlows {
			// The first packet of a flow takes another path, so each flow is sent once before.
			if _, err := g.run(p.gateway.front.Index, p.frame, p.flows); err != nil {
				return err
			}
		} else if err := g.next.Put(uint32(0), uint64(rand.Uint32N(newFlows))); err != nil {
			return err
		}
		n := cmp.Or(p.packets, defaultPackets)
		before, err := p.gateway.arrived()
		if err != nil {
			return err
		}
		took, err := g.run(p.gateway.front.Index, p.frame, n)
		if err != nil {
			return err
		}
		after, err := p.gateway.arrived()
		if err != nil {
			return err
		}
		r.Nanoseconds = append(r.Nanoseconds, took)
		r.Arrived += (float64(after-before)/float64(n) - r.Arrived) / float64(len(r.Nanoseconds))
		return nil
	})
}

// builder makes gateways and paths.
type builder struct {
	ctx      context.Context
	lab      *netlab.Lab
	options  Options
	gateways []*gateway
}

func (b *builder) close() error {
	var errs []error
	for _, g := range b.gateways {
		errs = append(errs, g.close(context.WithoutCancel(b.ctx)))
	}
	return errors.Join(errs...)
}

// gateway makes a gateway. If backend is not empty, the backend serves frontends on it.
func (b *builder) gateway(name, backend string, frontends int, options map[string]string) (*gateway, error) {
	g, err := newGateway(b.lab, name)
	if err != nil {
		return nil, err
	}
	b.gateways = append(b.gateways, g)
	if backend == "" {
		return g, nil
	}
	fmt.Fprintf(b.options.Progress, "%s: %s with %d frontends\n", name, backend, frontends)
	g.process, err = StartBackend(b.ctx, g.Namespace, backend, options, b.options.State, snapshot(frontends, backend == "ebpf"), b.options.Log)
	return g, err
}

func (b *builder) paths() ([]path, error) {
	plain, err := b.gateway("plain", "", 0, nil)
	if err != nil {
		return nil, err
	}
	routed := netip.AddrPortFrom(firstNode, servedPort)
	paths := []path{
		{name: "the generator alone", gateway: plain, frame: frame(plain.front.HardwareAddr, routed), flows: fewFlows, result: xdpDrop, lost: true},
		{name: Reference, gateway: plain, frame: frame(plain.front.HardwareAddr, routed), flows: fewFlows, result: xdpPass},
	}
	for _, group := range []struct {
		name string
		add  func() ([]path, error)
	}{{"xdp", b.xdpPaths}, {"tcx", b.tcxPaths}, {"nftables", b.nftablesPaths}, {"nftables-50k", b.crowdedPaths}, {"flowtable", b.fastPaths}, {"kube-proxy", b.kubeProxyPaths}} {
		if len(b.options.Only) > 0 && !slices.Contains(b.options.Only, group.name) {
			continue
		}
		more, err := group.add()
		if err != nil {
			return nil, err
		}
		paths = append(paths, more...)
	}
	return paths, nil
}

func (b *builder) xdpPaths() ([]path, error) {
	few, err := b.gateway("xdp", "ebpf", fewFrontends, map[string]string{"xdp": "native"})
	if err != nil {
		return nil, err
	}
	crowded, err := b.gateway("xdp1m", "ebpf", fewFrontends, map[string]string{"xdp": "native", "flows": "4194304"})
	if err != nil {
		return nil, err
	}
	many, err := b.gateway("xdp50k", "ebpf", manyFrontends, map[string]string{"xdp": "native"})
	if err != nil {
		return nil, err
	}
	to := func(g *gateway, port uint16) []byte {
		return frame(g.front.HardwareAddr, netip.AddrPortFrom(vip, port))
	}
	paths := []path{
		{name: "eBPF, XDP: known flow of 1,024", gateway: few, frame: to(few, servedPort), flows: fewFlows, byXDP: true},
		{name: "eBPF, XDP: known flow of 1,048,576", gateway: crowded, frame: to(crowded, servedPort), flows: manyFlows, byXDP: true},
		{name: "eBPF, XDP: known flow of 1,024, 50,000 frontends", gateway: many, frame: to(many, servedPort), flows: fewFlows, byXDP: true},
		{name: "eBPF, XDP: new flow", gateway: many, frame: to(many, servedPort), flows: newFlows, packets: newPackets, byXDP: true},
		{name: "eBPF, XDP: direct, known flow of 1,024", gateway: few, frame: to(few, directPort), flows: fewFlows, byXDP: true},
		{name: "eBPF, XDP: routed, not for a VIP", gateway: few, frame: frame(few.front.HardwareAddr, netip.AddrPortFrom(firstNode, servedPort)), flows: fewFlows, byXDP: true},
	}
	return paths, errors.Join(b.settle(paths[0]), b.settle(paths[1]), b.settle(paths[2]))
}

func (b *builder) tcxPaths() ([]path, error) {
	few, err := b.gateway("tcx", "ebpf", fewFrontends, map[string]string{"xdp": "off"})
	if err != nil {
		return nil, err
	}
	to := frame(few.front.HardwareAddr, netip.AddrPortFrom(vip, servedPort))
	paths := []path{
		{name: "eBPF, tcx: known flow of 1,024", gateway: few, frame: to, flows: fewFlows, result: xdpPass},
		{name: "eBPF, tcx: new flow", gateway: few, frame: to, flows: newFlows, packets: newPackets, result: xdpPass},
	}
	return paths, b.settle(paths[0])
}

func (b *builder) nftablesPaths() ([]path, error) {
	few, err := b.gateway("nft", "nftables", fewFrontends, withoutFlowtable())
	if err != nil {
		return nil, err
	}
	return []path{
		{name: "nftables: known flow of 1,024", gateway: few, frame: few.frameToVIP(), flows: fewFlows, result: xdpPass},
		{name: "nftables: new flow", gateway: few, frame: few.frameToVIP(), flows: newFlows, packets: newPackets, result: xdpPass, before: flushConnections},
	}, nil
}

func (b *builder) crowdedPaths() ([]path, error) {
	many, err := b.gateway("nft50k", "nftables", manyFrontends, withoutFlowtable())
	if err != nil {
		return nil, err
	}
	return []path{{name: "nftables: known flow of 1,024, 50,000 frontends", gateway: many, frame: many.frameToVIP(), flows: fewFlows, result: xdpPass}}, nil
}

// withoutFlowtable are options with which nftables uses no flowtable.
func withoutFlowtable() map[string]string { return map[string]string{"flowtable": "off"} }

func (g *gateway) frameToVIP() []byte {
	return frame(g.front.HardwareAddr, netip.AddrPortFrom(vip, servedPort))
}

// kubeProxyPaths returns paths through the rules of kube-proxy, which every node of a cluster has.
func (b *builder) kubeProxyPaths() ([]path, error) {
	if b.options.KubeProxy == "" {
		return nil, nil
	}
	var paths []path
	for _, frontends := range []int{fewFrontends, manyFrontends} {
		g, err := b.gateway(fmt.Sprintf("kubeproxy%d", frontends), "", 0, nil)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(b.options.Progress, "kube-proxy with %d Services\n", frontends)
		began := time.Now()
		if err := g.startKubeProxy(b.ctx, b.options.KubeProxy, b.options.State, reduceEndpoints(snapshot(frontends, false))); err != nil {
			return nil, err
		}
		fmt.Fprintf(b.options.Progress, "kube-proxy serves after %.0f s\n", time.Since(began).Seconds())
		to := frame(g.front.HardwareAddr, netip.AddrPortFrom(vip, servedPort))
		name := "kube-proxy (nftables)"
		if frontends == manyFrontends {
			name += ", 50,000 Services"
		}
		paths = append(paths,
			path{name: name + ": known flow of 1,024", gateway: g, frame: to, flows: fewFlows, result: xdpPass},
			path{name: name + ": new flow", gateway: g, frame: to, flows: newFlows, packets: newPackets, result: xdpPass, before: flushConnections})
	}
	return paths, nil
}

// flushConnections flushes connection tracking, because a full table takes no new connections.
func flushConnections() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }

// settle sends the first packets of the path's flows, and marks the flows as answered before the table of young flows is full.
func (b *builder) settle(p path) error {
	const batch = 1 << 15
	for first := uint32(0); first < p.flows; first += batch {
		n := min(batch, p.flows-first)
		err := p.gateway.Do(func() error {
			g, close, err := p.generator()
			if err != nil {
				return err
			}
			defer close()
			if err := g.next.Put(uint32(0), uint64(first)); err != nil {
				return err
			}
			_, err = g.run(p.gateway.front.Index, p.frame, n)
			return err
		})
		if err := errors.Join(err, p.gateway.settle()); err != nil {
			return err
		}
	}
	return nil
}

// generator makes a generator of the path's packets.
func (p path) generator() (_ *generator, close func(), _ error) {
	var next *ebpf.Program
	if p.byXDP {
		var err error
		if next, err = p.gateway.xdp(); err != nil {
			return nil, nil, err
		}
	}
	g, err := newGenerator(p.frame, p.flows, next, p.result)
	if err != nil {
		_ = next.Close()
		return nil, nil, err
	}
	return g, func() {
		g.close()
		_ = next.Close()
	}, nil
}
