package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// gateway is a host between generated clients and nodes. The nodes count and drop packets.
type gateway struct {
	*netlab.Namespace
	sink    *netlab.Namespace
	front   *netlink.LinkAttrs
	process cases.Process
	counted *ebpf.Map
	detach  func() error
	// stop has functions that end other programs on the gateway. They are called in reverse order.
	stop []func() error
}

// The nodes have addresses from 198.18.0.10 on. Packets of plain routing go to the first node.
var (
	firstNode = netip.MustParseAddr("198.18.0.10")
	nodeMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

const nodes = 100

// newGateway makes a host whose interfaces accept frames of XDP programs.
func newGateway(lab *netlab.Lab, name string) (_ *gateway, err error) {
	g := &gateway{}
	if g.Namespace, err = lab.Namespace(name, "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"); err != nil {
		return nil, err
	}
	if g.sink, err = lab.Namespace(name + "-sink"); err != nil {
		return nil, err
	}
	err = errors.Join(g.MountBPF(),
		lab.Link(netlab.Interface{Namespace: g.Namespace, Name: "front", Addresses: []string{"192.0.2.1/24"}}, netlab.Interface{Namespace: g.sink, Name: "front"}),
		lab.Link(netlab.Interface{Namespace: g.Namespace, Name: "back", Addresses: []string{"198.18.0.1/16"}}, netlab.Interface{Namespace: g.sink, Name: "back"}))
	if err != nil {
		return nil, err
	}
	return g, errors.Join(g.sink.AcceptXDPFrames("front"), g.sink.AcceptXDPFrames("back"), g.AcceptXDPFrames("front"), g.AcceptXDPFrames("back"), g.Do(g.setNeighbours), g.sink.Do(g.count))
}

// setNeighbours sets permanent neighbour entries, so that the kernel resolves none.
func (g *gateway) setNeighbours() error {
	front, err := netlink.LinkByName("front")
	if err != nil {
		return err
	}
	g.front = front.Attrs()
	back, err := netlink.LinkByName("back")
	if err != nil {
		return err
	}
	node := firstNode
	for range nodes {
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: back.Attrs().Index, IP: node.AsSlice(), HardwareAddr: nodeMAC, State: netlink.NUD_PERMANENT}); err != nil {
			return err
		}
		node = node.Next()
	}
	// Answers to the generated clients need a route, too.
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: g.front.Index, IP: net.IP{192, 0, 2, 100}, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}); err != nil {
		return err
	}
	_, network, err := net.ParseCIDR("10.77.0.0/16")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: g.front.Index, Dst: network, Gw: net.IP{192, 0, 2, 100}})
}

// count attaches a program that counts and drops packets on the nodes' segment.
func (g *gateway) count() error {
	back, err := netlink.LinkByName("back")
	if err != nil {
		return err
	}
	if g.counted, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return err
	}
	const drop = 2 // TC_ACT_SHOT
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "count", Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
		asm.LoadMapValue(asm.R1, g.counted.FD(), 0),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, drop),
		asm.Return(),
	}})
	if err != nil {
		return err
	}
	attached, err := link.AttachTCX(link.TCXOptions{Interface: back.Attrs().Index, Program: program, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return errors.Join(err, program.Close())
	}
	g.detach = func() error { return errors.Join(attached.Close(), program.Close(), g.counted.Close()) }
	return nil
}

// arrived returns how many frames have reached the nodes' segment.
func (g *gateway) arrived() (n uint64, err error) {
	return n, g.counted.Lookup(uint32(0), &n)
}

// StartBackend starts a backend, by name or path, on a host, and applies the records. state is the parent of its state directory. The
// backend adopts what an earlier process left.
func StartBackend(ctx context.Context, on *netlab.Namespace, backend string, options map[string]string, state string, want model.Snapshot, log io.Writer) (cases.Process, error) {
	path, err := plugin.Find(backend)
	if err != nil {
		return nil, err
	}
	process, err := conformance.Plugin(path).Start(ctx, on, log)
	if err != nil {
		return nil, err
	}
	if err := process.Configure(ctx, dataplane.Config{StateDir: filepath.Join(state, on.Name), Options: options}); err != nil {
		process.Stop()
		return nil, fmt.Errorf("configure %s: %w", backend, err)
	}
	if err := applyDifference(ctx, process, want); err != nil {
		err = errors.Join(fmt.Errorf("apply to %s: %w", backend, err), process.Close(ctx, true))
		process.Stop()
		return nil, err
	}
	return process, nil
}

// applyDifference applies the difference between the wanted records and those that the dataplane holds.
func applyDifference(ctx context.Context, process cases.Process, want model.Snapshot) error {
	held, err := process.Applied(ctx)
	if err != nil {
		return err
	}
	change := dataplane.Change{Base: held.Generation, Next: dataplane.Generation{Epoch: "bench", Number: held.Generation.Number + 1}, Delta: model.Difference(held.Digests, want)}
	result, err := process.Apply(ctx, change)
	if err == nil && len(result.Failed) > 0 {
		err = fmt.Errorf("%v", result.Failed)
	}
	return err
}

// xdp returns the XDP program at the front interface, or nil.
func (g *gateway) xdp() (program *ebpf.Program, err error) {
	err = g.Do(func() error {
		l, err := netlink.LinkByName("front")
		if err != nil || l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached {
			return err
		}
		program, err = ebpf.NewProgramFromID(ebpf.ProgramID(l.Attrs().Xdp.ProgId))
		return err
	})
	return program, err
}

// Sizes, offsets and flags of flows in maps of the eBPF backend (backends/ebpf/bpf/model.h).
const (
	flowKeySize, flowSize = 40, 60
	flowState             = 56
	stateReply            = 1
	stateReplied          = 2
)

// settle marks young flows as answered in the backend's maps, as answers of the nodes would do.
func (g *gateway) settle() error {
	return g.Do(func() error {
		pins, err := filepath.Glob("/sys/fs/bpf/kubelb-*")
		if err != nil || len(pins) != 1 {
			return fmt.Errorf("want one directory with the backend's maps, found %v: %w", pins, err)
		}
		young, err := ebpf.LoadPinnedMap(filepath.Join(pins[0], "young_flows"), nil)
		if err != nil {
			return err
		}
		defer young.Close()
		flows, err := ebpf.LoadPinnedMap(filepath.Join(pins[0], "flows"), nil)
		if err != nil {
			return err
		}
		defer flows.Close()
		keys, values := make([][flowKeySize]byte, young.MaxEntries()), make([][flowSize]byte, young.MaxEntries())
		n, err := young.BatchLookupAndDelete(new(ebpf.MapBatchCursor), keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // there are no more
			return fmt.Errorf("read the young flows: %w", err)
		}
		for i := range n {
			if values[i][flowState]&stateReply == 0 {
				values[i][flowState] |= stateReplied
			}
		}
		if _, err := flows.BatchUpdate(keys[:n], values[:n], nil); err != nil {
			return fmt.Errorf("write %d flows: %w", n, err)
		}
		return nil
	})
}

func (g *gateway) close(ctx context.Context) error {
	var err error
	for _, stop := range slices.Backward(g.stop) {
		err = errors.Join(err, stop())
	}
	if g.process != nil {
		err = errors.Join(err, g.process.Close(ctx, true))
		g.process.Stop()
	}
	if g.detach != nil {
		err = errors.Join(err, g.detach())
	}
	return err
}
