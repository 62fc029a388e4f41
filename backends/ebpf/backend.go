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
	// pollMu is held during a poll of Watch, so that Close waits for the end of it.
	pollMu sync.Mutex
	kernel *kernel
	// mu guards state and sources, and the programs and maps of kernel, which Watch changes while other calls run.
	mu      sync.Mutex
	state   *state
	sources *sources
	// routes records changes of routes while Watch runs.
	routes routes.Changes
	// editSpec changes the programs before they are loaded. Only tests set it.
	editSpec func(*ebpf.CollectionSpec) error
}

var _ dataplane.Dataplane = (*Backend)(nil)

// Describe returns name, version and features.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	return dataplane.Description{Name: "ebpf", Version: Version, Features: []dataplane.Feature{dataplane.SourceRanges, dataplane.Affinity, dataplane.AffinityTimeout, dataplane.Weights, dataplane.MaglevTable, dataplane.Drain,
		dataplane.Transparent, dataplane.Direct, dataplane.IdleTimeout, dataplane.ICMPEcho, dataplane.PathMTU, dataplane.Refusal, dataplane.Redirects, dataplane.Limits, dataplane.RateLimits, dataplane.PacketHeaders}}, nil
}

// The range of source ports of rewritten flows. It is below the ports of this host's own connections (net.ipv4.ip_local_port_range begins at 32768), and below
// NodePorts.
const firstPort, lastPort = 1024, 29999

// The operator's options.
const (
	optionBPFFS = "bpffs" // the BPF file system for pinned objects
	optionXDP   = "xdp"   // where the XDP program runs
	optionFlows = "flows" // the number of entries of the table of flows, two for each flow
	// optionAttach is how the tc program is attached.
	optionAttach = "attach"
)

// defaultBPFFS is where systemd mounts the BPF file system.
const defaultBPFFS = "/sys/fs/bpf"

const (
	defaultFlows = 1 << 19
	maxFlows     = 1 << 26
)

type options struct {
	bpffs, xdp, attach string
	flows              uint32
	editSpec           func(*ebpf.CollectionSpec) error
}

func parseOptions(values map[string]string) (options, error) {
	o := options{bpffs: defaultBPFFS, xdp: xdpAuto, attach: attachAuto, flows: defaultFlows}
	for option, value := range values {
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
			if err != nil || n < 1<<10 || n > maxFlows {
				return o, fmt.Errorf("backend option %s=%q: give a number from %d to %d", optionFlows, value, 1<<10, maxFlows)
			}
			o.flows = uint32(n)
		default:
			return o, fmt.Errorf("backend option %q: the eBPF dataplane knows only %s, %s, %s and %s", option, optionBPFFS, optionXDP, optionFlows, optionAttach)
		}
	}
	return o, nil
}

// Configure loads the programs and attaches them.
func (b *Backend) Configure(_ context.Context, config dataplane.Config) error {
	o, err := parseOptions(config.Options)
	if err != nil {
		return err
	}
	o.editSpec = b.editSpec
	if err := checkKernel(); err != nil {
		return err
	}
	k, err := load(o, config.StateDir)
	if err != nil {
		return err
	}
	s, err := k.adopt()
	if err == nil && s.last == (numbers{Layout: layoutVersion}) {
		err = keepNAT() // no eBPF dataplane ran here before, but another one may run
	}
	if err == nil {
		err = errors.Join(k.configure(firstPort, lastPort), k.attachAtStart())
	}
	if err != nil {
		return errors.Join(err, k.close(false))
	}
	b.kernel, b.state, b.sources = k, s, newSources(lookupSource)
	if err := b.invalidateChangedSources(); err != nil {
		b.kernel = nil
		return errors.Join(err, k.close(false))
	}
	return nil
}

// Applied returns the digests of what the maps hold.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	return dataplane.Applied{Digests: b.state.digests()}, nil
}

// Watch polls until the context ends. A poll attaches the programs to new interfaces, updates source addresses and restores pinned objects. From time to time it sweeps flows.
func (b *Backend) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	var listening sync.WaitGroup
	defer listening.Wait()
	listening.Go(func() {
		b.routes.Listen(ctx, func(err error) { report(dataplane.Fault{Time: time.Now(), Message: err.Error()}) })
	})
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var swept time.Time
	if err := b.faultAtStart(); err != nil {
		report(dataplane.Fault{Time: time.Now(), Message: err.Error()})
	}
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return nil
		case now = <-ticker.C:
		}
		sweep := now.Sub(swept) >= sweepInterval || b.sweepsEachPoll()
		if sweep {
			swept = now
		}
		if err := b.poll(sweep); err != nil {
			report(dataplane.Fault{Time: now, Message: err.Error(), Resync: errors.Is(err, errPoolsNeeded)})
		}
	}
}

func (b *Backend) poll(sweep bool) error {
	b.pollMu.Lock()
	defer b.pollMu.Unlock()
	if b.kernel == nil {
		return nil
	}
	err := errors.Join(b.kernel.attach(), b.updateTracking(), b.updateSources(), b.restorePins())
	if sweep {
		err = errors.Join(err, b.sweep())
	}
	return err
}

// faultAtStart returns the fault of connection tracking to report when Watch starts.
func (b *Backend) faultAtStart() error {
	b.pollMu.Lock()
	defer b.pollMu.Unlock()
	if b.kernel == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.trackingFault()
}

// updateTracking calls kernel.updateTracking, and reports the fault if connection tracking has come and cannot be called. The caller holds pollMu.
func (b *Backend) updateTracking() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.kernel.tracking.present
	err := b.kernel.updateTracking()
	if !before && b.kernel.tracking.present {
		err = errors.Join(err, b.trackingFault())
	}
	return err
}

// restorePins calls kernel.restorePins. The caller holds pollMu.
func (b *Backend) restorePins() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kernel.restorePins()
}

func (b *Backend) sweepsEachPoll() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state != nil && b.state.frequentSweeps > 0
}
