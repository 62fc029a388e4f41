// Package bench measures what a packet costs on a gateway, by dataplane, beside plain routing, all in one run.
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

// Options say how long to measure.
type Options struct {
	// Rounds is how often each row is measured; in each round all rows are, in random order.
	Rounds int
	// Packets of each row in a round, by default a million. Under emulation a few are enough, as instructions are counted there.
	Packets uint32
	// Only names the groups of rows to measure beside plain routing: xdp, tcx, nftables, nftables-50k, flowtable, kube-proxy; all if there is none.
	Only []string
	// KubeProxy is the binary, empty to leave it out.
	KubeProxy string
	// State is a directory for the backends' state.
	State string
	// Log takes what the backends write, Progress a line for each round.
	Log, Progress io.Writer
}

// Row is what was measured of one path.
type Row struct {
	Name string
	// Nanoseconds of processor time for each packet, by round.
	Nanoseconds []float64
	// Arrived is the share of packets that reached the nodes.
	Arrived float64
}

// Reference is the row that all others are compared with.
const Reference = "plain routing"

// Ratios are those to the reference, of the same rounds.
func (r Row) Ratios(reference Row) []float64 {
	out := make([]float64, len(r.Nanoseconds))
	for i, n := range r.Nanoseconds {
		out[i] = n / reference.Nanoseconds[i]
	}
	return out
}

// Median of some values.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// The flows and frontends of rows.
const (
	fewFlows, manyFlows = 1 << 10, 1 << 20
	newFlows            = 1 << 30

	fewFrontends, manyFrontends = 10, 50_000

	packets    = 1_000_000
	newPackets = 50_000
)

// path is a row before it is measured.
type path struct {
	name    string
	gateway *gateway
	frame   []byte
	flows   uint32
	packets uint32
	// byXDP: the gateway's XDP program is behind the generator.
	byXDP  bool
	result int32
	// before prepares each round.
	before func() error
	lost   bool // nothing is meant to arrive
}

var vip = netip.MustParseAddr("203.0.113.1")

const servedPort, directPort = 80, 81

// snapshot has frontends on 203.0.113.1, on ports 80 (nat) and 81 (direct), and others elsewhere, all with the same pool.
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

// measure measures the path once, by so many packets unless the path has its own number.
func (r *Row) measure(p path, most uint32) error {
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
			// What is seldom seen goes another way the first time.
			if _, err := g.run(p.gateway.front.Index, p.frame, p.flows); err != nil {
				return err
			}
		} else if err := g.next.Put(uint32(0), uint64(rand.Uint32N(newFlows))); err != nil {
			return err
		}
		n := cmp.Or(p.packets, most)
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

// gateway makes one; with a backend it serves.
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
	few, err := b.gateway("nft", "nftables", fewFrontends, slow())
	if err != nil {
		return nil, err
	}
	return []path{
		{name: "nftables: known flow of 1,024", gateway: few, frame: few.frameToVIP(), flows: fewFlows, result: xdpPass},
		{name: "nftables: new flow", gateway: few, frame: few.frameToVIP(), flows: newFlows, packets: newPackets, result: xdpPass, before: forgetConnections},
	}, nil
}

func (b *builder) crowdedPaths() ([]path, error) {
	many, err := b.gateway("nft50k", "nftables", manyFrontends, slow())
	if err != nil {
		return nil, err
	}
	return []path{{name: "nftables: known flow of 1,024, 50,000 frontends", gateway: many, frame: many.frameToVIP(), flows: fewFlows, result: xdpPass}}, nil
}

// slow has nftables take no flowtable.
func slow() map[string]string { return map[string]string{"flowtable": "off"} }

func (g *gateway) frameToVIP() []byte {
	return frame(g.front.HardwareAddr, netip.AddrPortFrom(vip, servedPort))
}

// kubeProxyPaths are those through the rules that every node of a cluster has.
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
		if err := g.startKubeProxy(b.ctx, b.options.KubeProxy, b.options.State, endpointsOfOthers(snapshot(frontends, false))); err != nil {
			return nil, err
		}
		fmt.Fprintf(b.options.Progress, "it serves after %.0f s\n", time.Since(began).Seconds())
		to := frame(g.front.HardwareAddr, netip.AddrPortFrom(vip, servedPort))
		name := "kube-proxy (nftables)"
		if frontends == manyFrontends {
			name += ", 50,000 Services"
		}
		paths = append(paths,
			path{name: name + ": known flow of 1,024", gateway: g, frame: to, flows: fewFlows, result: xdpPass},
			path{name: name + ": new flow", gateway: g, frame: to, flows: newFlows, packets: newPackets, result: xdpPass, before: forgetConnections})
	}
	return paths, nil
}

// forgetConnections makes room: a table of connections that is full takes no new ones.
func forgetConnections() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }

// settle sends the first packets of the path's flows, and has them answered, before the table of young flows is full.
func (b *builder) settle(p path) error {
	const most = 1 << 15
	for first := uint32(0); first < p.flows; first += most {
		some := min(most, p.flows-first)
		err := p.gateway.Do(func() error {
			g, close, err := p.generator()
			if err != nil {
				return err
			}
			defer close()
			if err := g.next.Put(uint32(0), uint64(first)); err != nil {
				return err
			}
			_, err = g.run(p.gateway.front.Index, p.frame, some)
			return err
		})
		if err := errors.Join(err, p.gateway.settle()); err != nil {
			return err
		}
	}
	return nil
}

// generator makes the path's packets, until it is closed.
func (p path) generator() (_ *generator, close func(), _ error) {
	var behind *ebpf.Program
	if p.byXDP {
		var err error
		if behind, err = p.gateway.xdp(); err != nil {
			return nil, nil, err
		}
	}
	g, err := newGenerator(p.frame, p.flows, behind, p.result)
	if err != nil {
		_ = behind.Close()
		return nil, nil, err
	}
	return g, func() {
		g.close()
		_ = behind.Close()
	}, nil
}
