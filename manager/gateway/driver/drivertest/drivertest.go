// Package drivertest is a dataplane for tests of package driver and its users. It keeps its records in memory. Files of a directory control it. It
// runs in the test's own process, or as a plugin.
package drivertest

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// The files of a host control what the host has, and what its dataplane does.
const (
	// Module is required by the dataplane, Sysctl by one of its features.
	Module, Sysctl = "module", "proc/sys/it"
	// PreflightFails: the preflight returns an error.
	PreflightFails = "mute"
	// ExitOnApply: the process ends when it is sent a change.
	ExitOnApply = "end"
)

// Hang is the file that makes a call of that name not return.
func Hang(call string) string { return "hang-" + call }

// option is the backend option with the host's directory.
const option = "host"

// Options returns the backend options of a dataplane on a host with that directory.
func Options(dir string) map[string]string { return map[string]string{option: dir} }

// Dataplane is dataplane.Fake on a host.
type Dataplane struct {
	kernel *Kernel
	config dataplane.Config
	// exit ends the process, exited reports whether it has ended.
	exit   func()
	exited func() bool
}

// Kernel holds the records of a host's dataplane.
type Kernel struct {
	mu   sync.Mutex // guards fake while it is called
	fake dataplane.Fake
	// Features are features of the dataplane in addition to those of dataplane.Fake.
	Features []dataplane.Feature
}

// Changes returns all changes that were applied.
func (k *Kernel) Changes() []dataplane.Change {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.fake.Changes)
}

// Refuse makes the dataplane refuse the records for which why returns a reason.
func (k *Kernel) Refuse(why func(record string) string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fake.Refuse = why
}

// Dump returns the records in the text form of the model.
func (k *Kernel) Dump() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fake.Dump()
}

// Restart loses what a new process of the dataplane does not know.
func (k *Kernel) Restart() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fake.Restart()
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// New returns a dataplane for a process of its own.
func New() *Dataplane {
	return &Dataplane{kernel: &Kernel{}, exit: func() { os.Exit(1) }, exited: func() bool { return false }}
}

func has(config dataplane.Config, file string) bool {
	_, err := os.Stat(filepath.Join(config.Options[option], file))
	return err == nil
}

var errEnded = errors.New("the process has ended")

// hang returns an error if the process has ended meanwhile.
func (d *Dataplane) hang(config dataplane.Config, call string) error {
	for has(config, Hang(call)) && !d.exited() {
		time.Sleep(10 * time.Millisecond)
	}
	if d.exited() {
		return errEnded
	}
	return nil
}

// Describe returns a dataplane with the features of dataplane.Fake and of the kernel.
func (d *Dataplane) Describe(ctx context.Context) (dataplane.Description, error) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	description, err := d.kernel.fake.Describe(ctx)
	description.Features = append(description.Features, d.kernel.Features...)
	return description, err
}

// Preflight checks for Module and Sysctl.
func (d *Dataplane) Preflight(_ context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	if err := d.hang(config, "Preflight"); err != nil {
		return nil, err
	}
	if has(config, PreflightFails) {
		return nil, errors.New("netlink dump interrupted")
	}
	checks := []dataplane.Check{
		{Group: dataplane.GroupModules, Subject: "module", Found: "not loaded", Command: "modprobe it"},
		{Group: dataplane.GroupSysctls, Subject: "sysctl it", Found: "is 0", Command: "sysctl -w it=1", Costs: "forwarding: direct"},
	}
	for i, file := range []string{Module, Sysctl} {
		checks[i].State = dataplane.CheckMissing
		if has(config, file) {
			checks[i].State, checks[i].Found = dataplane.CheckOK, "it is there"
		}
	}
	return checks, nil
}

// Configure fails without the module, as a kernel does.
func (d *Dataplane) Configure(ctx context.Context, config dataplane.Config) error {
	if !has(config, Module) {
		return errors.New("conn.Receive: netlink receive: no such file or directory")
	}
	d.config = config
	if err := d.hang(config, "Configure"); err != nil {
		return err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return d.kernel.fake.Configure(ctx, config)
}

// Applied returns the digests of the records.
func (d *Dataplane) Applied(ctx context.Context) (dataplane.Applied, error) {
	if err := d.hang(d.config, "Applied"); err != nil {
		return dataplane.Applied{}, err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return d.kernel.fake.Applied(ctx)
}

// Apply takes the change.
func (d *Dataplane) Apply(ctx context.Context, c dataplane.Change) (dataplane.Result, error) {
	if err := d.hang(d.config, "Apply"); err != nil {
		return dataplane.Result{}, err
	}
	if has(d.config, ExitOnApply) {
		d.exit()
		return dataplane.Result{}, errEnded
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return d.kernel.fake.Apply(ctx, c)
}

// Render returns the snapshot's text.
func (d *Dataplane) Render(ctx context.Context, s model.Snapshot) (string, error) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return d.kernel.fake.Render(ctx, s)
}

// Stats returns counters of zero.
func (d *Dataplane) Stats(ctx context.Context) (dataplane.Stats, error) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return d.kernel.fake.Stats(ctx)
}

// Watch waits until ctx ends.
func (d *Dataplane) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	return d.kernel.fake.Watch(ctx, report)
}

// Close drops all records when purging.
func (d *Dataplane) Close(ctx context.Context, purge bool) error {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return d.kernel.fake.Close(ctx, purge)
}

// Host is a machine on which plugins run in the test's own process. The state of its kernel outlives them.
type Host struct {
	t      testing.TB
	Dir    string
	Kernel Kernel
}

// NewHost returns a host without files.
func NewHost(t testing.TB) *Host { return &Host{t: t, Dir: t.TempDir()} }

// Add creates files of the host.
func (h *Host) Add(files ...string) {
	h.t.Helper()
	for _, file := range files {
		path := filepath.Join(h.Dir, file)
		require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(h.t, os.WriteFile(path, nil, 0o600))
	}
}

// Remove removes a file of the host.
func (h *Host) Remove(file string) {
	h.t.Helper()
	require.NoError(h.t, os.Remove(filepath.Join(h.Dir, file)))
}

// Start starts a plugin.
func (h *Host) Start() *Process {
	h.Kernel.Restart()
	p := &Process{exited: make(chan struct{})}
	p.Dataplane = &Dataplane{kernel: &h.Kernel, exit: p.Stop, exited: p.Exited}
	return p
}

// Process is a plugin that runs in the test's own process. Calls fail once it has ended.
type Process struct {
	*Dataplane
	once   sync.Once
	exited chan struct{}
}

// Exited reports whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Stop ends the process.
func (p *Process) Stop() { p.once.Do(func() { close(p.exited) }) }

// Kill ends the process.
func (p *Process) Kill() error {
	p.Stop()
	return nil
}

// Watch returns when the process or ctx has ended.
func (p *Process) Watch(ctx context.Context, _ func(dataplane.Fault)) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.exited:
		return errEnded
	}
}

// RequestLoadBalancer makes a tenant request a LoadBalancer with so many ports at the addresses.
func RequestLoadBalancer(hub *translate.Translator, tenant string, ports int32, vips ...netip.Addr) {
	hub.SetTenant(translate.Tenant{Name: tenant, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	lb := translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: "lb"}, Type: "LoadBalancer", VIPs: vips, Addresses: []translate.Address{{IP: "198.51.100.1"}}}
	for n := range ports {
		lb.Ports, lb.EndpointPorts = append(lb.Ports, translate.Port{Number: 1 + n}), append(lb.EndpointPorts, translate.Port{Number: 30000})
	}
	hub.SetLoadBalancer(lb)
}
