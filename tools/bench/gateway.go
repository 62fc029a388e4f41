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

// gateway is a host between clients, which are made up, and nodes, where what arrives is counted and dropped.
type gateway struct {
	*netlab.Namespace
	sink    *netlab.Namespace
	front   *netlink.LinkAttrs
	process cases.Process
	counted *ebpf.Map
	detach  func() error
	// stop ends what else runs here, the last first.
	stop []func() error
}

// Addresses. Nodes are 198.18.0.10 and on; what is routed plainly goes to the first of them.
var (
	firstNode = netip.MustParseAddr("198.18.0.10")
	nodeMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

const nodes = 100

// newGateway makes a host whose interfaces take frames of XDP programs.
func newGateway(lab *netlab.Lab, name string) (_ *gateway, err error) {
	g := &gateway{}
	if g.Namespace, err = lab.Namespace(name, "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0"); err != nil {
		return nil, err
	}
	if g.sink, err = lab.Namespace(name + "-sink"); err != nil {
		return nil, err
	}
	err = errors.Join(g.OwnBPF(),
		lab.Link(netlab.Interface{Namespace: g.Namespace, Name: "front", Addresses: []string{"192.0.2.1/24"}}, netlab.Interface{Namespace: g.sink, Name: "front"}),
		lab.Link(netlab.Interface{Namespace: g.Namespace, Name: "back", Addresses: []string{"198.18.0.1/16"}}, netlab.Interface{Namespace: g.sink, Name: "back"}))
	if err != nil {
		return nil, err
	}
	return g, errors.Join(g.sink.TakesFrames("front"), g.sink.TakesFrames("back"), g.TakesFrames("front"), g.TakesFrames("back"), g.Do(g.know), g.sink.Do(g.count))
}

// know has all neighbours known.
func (g *gateway) know() error {
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
	// So that answers to the made-up clients have a way, too.
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: g.front.Index, IP: net.IP{192, 0, 2, 100}, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}); err != nil {
		return err
	}
	_, network, err := net.ParseCIDR("10.77.0.0/16")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: g.front.Index, Dst: network, Gw: net.IP{192, 0, 2, 100}})
}

// count has what reaches the nodes' segment counted and dropped.
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

// arrived is how many frames have reached the nodes' segment.
func (g *gateway) arrived() (n uint64, err error) {
	return n, g.counted.Lookup(uint32(0), &n)
}

// StartBackend runs a backend, by name or path, on a host, with its state below a directory, and has it serve the records. What an
// earlier process has left there it takes over.
func StartBackend(ctx context.Context, on *netlab.Namespace, backend string, options map[string]string, state string, want model.Snapshot, log io.Writer) (cases.Process, error) {
	path, err := plugin.Find(backend)
	if err != nil {
		return nil, err
	}
	process, err := conformance.Plugin(path).Start(ctx, on, log)
	if err != nil {
		return nil, err
	}
	if err := process.Configure(ctx, dataplane.Config{Node: on.Name, StateDir: filepath.Join(state, on.Name), Options: options}); err != nil {
		process.Stop()
		return nil, fmt.Errorf("configure %s: %w", backend, err)
	}
	if err := bringTo(ctx, process, want); err != nil {
		err = errors.Join(fmt.Errorf("apply to %s: %w", backend, err), process.Close(ctx, true))
		process.Stop()
		return nil, err
	}
	return process, nil
}

// bringTo applies what differs from what the process holds, which may be what another one has left.
func bringTo(ctx context.Context, process cases.Process, want model.Snapshot) error {
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

// xdp is the XDP program at the front, nil if there is none.
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

// Offsets in what the eBPF backend keeps of a flow (backends/ebpf/bpf/model.h).
const (
	flowKeySize, flowSize = 40, 60
	flowState             = 56
	stateReply            = 1
	stateReplied          = 2
)

// settle makes flows that have just begun ones that have been answered, as an echo of the nodes would, in the backend's tables.
func (g *gateway) settle() error {
	return g.Do(func() error {
		pins, err := filepath.Glob("/sys/fs/bpf/kubelb-*")
		if err != nil || len(pins) != 1 {
			return fmt.Errorf("the backend's maps: %v %w", pins, err)
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
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which means that there are no more
			return fmt.Errorf("take the young flows: %w", err)
		}
		for i := range n {
			if values[i][flowState]&stateReply == 0 {
				values[i][flowState] |= stateReplied
			}
		}
		if _, err := flows.BatchUpdate(keys[:n], values[:n], nil); err != nil {
			return fmt.Errorf("keep %d flows: %w", n, err)
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
