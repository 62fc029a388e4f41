package ebpf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/routes"
)

// Version is this backend's version.
const Version = "0.1.0"

// Backend implements dataplane.Dataplane. Its zero value is ready.
type Backend struct {
	// watching is held while Watch looks, so that Close ends nothing under its hands.
	watching sync.Mutex
	kernel   *kernel
	// mu guards state and sources, and the programs and maps of kernel, which Watch changes beside the other calls.
	mu      sync.Mutex
	state   *state
	sources *sources
	// routes are heard while Watch runs.
	routes routes.Changes
	// edit, which tests have, is what happens to programs before they are loaded.
	edit func(*ebpf.CollectionSpec) error
}

var _ dataplane.Dataplane = (*Backend)(nil)

// Describe tells name, version and features.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	return dataplane.Description{Name: "ebpf", Version: Version, Features: []dataplane.Feature{dataplane.SourceRanges, dataplane.Affinity, dataplane.AffinityTimeout, dataplane.Weights, dataplane.Drain,
		dataplane.Transparent, dataplane.Direct, dataplane.IdleTimeout, dataplane.ICMPEcho, dataplane.PathMTU, dataplane.Refusal, dataplane.Handover, dataplane.Limits, dataplane.RateLimits}}, nil
}

// The dataplane rewrites clients' source ports to these. They lie below the ports that this host takes for its own connections
// (net.ipv4.ip_local_port_range begins at 32768), and below NodePorts.
const firstPort, lastPort = 1024, 29999

// The operator's options.
const (
	optionBPFFS = "bpffs" // the BPF file system that everything is pinned in
	optionXDP   = "xdp"   // where the XDP program runs
	optionFlows = "flows" // how many entries the table of flows has, two for each flow
	// optionAttach is how the complete program is attached.
	optionAttach = "attach"
)

// usualBPFFS is where systemd mounts it.
const usualBPFFS = "/sys/fs/bpf"

const (
	defaultFlows = 1 << 19
	mostFlows    = 1 << 26
)

type options struct {
	bpffs, xdp, attach string
	flows              uint32
	edit               func(*ebpf.CollectionSpec) error
}

func readOptions(given map[string]string) (options, error) {
	o := options{bpffs: usualBPFFS, xdp: xdpAuto, attach: attachAuto, flows: defaultFlows}
	for option, value := range given {
		switch option {
		case optionBPFFS:
			o.bpffs = value
		case optionXDP:
			if !slices.Contains(xdpModes, value) {
				return o, fmt.Errorf("backend option %s=%q: give one of %s", optionXDP, value, strings.Join(xdpModes, ", "))
			}
			o.xdp = value
		case optionAttach:
			if !slices.Contains(attachModes, value) {
				return o, fmt.Errorf("backend option %s=%q: give one of %s", optionAttach, value, strings.Join(attachModes, ", "))
			}
			o.attach = value
		case optionFlows:
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n < 1<<10 || n > mostFlows {
				return o, fmt.Errorf("backend option %s=%q: give a number from %d to %d", optionFlows, value, 1<<10, mostFlows)
			}
			o.flows = uint32(n)
		default:
			return o, fmt.Errorf("backend option %q: the eBPF backend knows only %s, %s, %s and %s", option, optionBPFFS, optionXDP, optionFlows, optionAttach)
		}
	}
	return o, nil
}

// Configure loads the programs and attaches them.
func (b *Backend) Configure(_ context.Context, config dataplane.Config) error {
	o, err := readOptions(config.Options)
	if err != nil {
		return err
	}
	o.edit = b.edit
	if err := requireKernel(); err != nil {
		return err
	}
	k, err := load(o, config.StateDir)
	if err != nil {
		return err
	}
	s, err := k.adopt()
	if err == nil && s.last == (numbers{Layout: layoutVersion}) {
		err = keepRewriting() // nothing was here but, maybe, another dataplane
	}
	if err == nil {
		err = errors.Join(k.configure(firstPort, lastPort), k.attachFirst())
	}
	if err != nil {
		return errors.Join(err, k.close(false))
	}
	b.kernel, b.state, b.sources = k, s, newSources(sourceTowards)
	if err := b.doubtSources(); err != nil {
		b.kernel = nil
		return errors.Join(err, k.close(false))
	}
	return nil
}

// Applied returns the digests of what the maps hold.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	return dataplane.Applied{Digests: b.state.digests()}, nil
}

// Watch attaches the programs to interfaces that come, follows this gateway's addresses, and forgets flows that have ended.
func (b *Backend) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	var listening sync.WaitGroup
	defer listening.Wait()
	listening.Go(func() {
		b.routes.Listen(ctx, func(err error) { report(dataplane.Fault{Time: time.Now(), Message: err.Error()}) })
	})
	ticker := time.NewTicker(oftenInterval)
	defer ticker.Stop()
	var swept time.Time
	if err := b.trackingFault(); err != nil {
		report(dataplane.Fault{Time: time.Now(), Message: err.Error()})
	}
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return nil
		case now = <-ticker.C:
		}
		due := now.Sub(swept) >= sweepInterval || b.sweepsOften()
		if due {
			swept = now
		}
		if err := b.look(due); err != nil {
			report(dataplane.Fault{Time: now, Message: err.Error(), Resync: errors.Is(err, errGiveAgain)})
		}
	}
}

func (b *Backend) look(sweep bool) error {
	b.watching.Lock()
	defer b.watching.Unlock()
	if b.kernel == nil {
		return nil
	}
	err := errors.Join(b.kernel.attach(), b.followTracking(), b.followSources())
	if sweep {
		err = errors.Join(err, b.sweep())
	}
	return err
}

func (b *Backend) trackingFault() error {
	b.watching.Lock()
	defer b.watching.Unlock()
	if b.kernel == nil {
		return nil
	}
	return b.kernel.tracking.fault()
}

// followTracking is called where Watch does not look at the same time.
func (b *Backend) followTracking() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kernel.followTracking()
}

func (b *Backend) sweepsOften() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state != nil && b.state.swept > 0
}
