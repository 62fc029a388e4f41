// Package drivertest is a dataplane for tests of what drives one. It keeps its records in memory, and does what files of a directory say. It works in
// the test's own process, or as a plugin.
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

// Files of a host, by which it has something, or its dataplane does something.
const (
	// Module is required by the dataplane, Sysctl by a feature of it.
	Module, Sysctl = "module", "proc/sys/it"
	// Mute: the dataplane cannot tell what it needs.
	Mute = "mute"
	// End: the dataplane's process ends when it is sent a change.
	End = "end"
)

// Hang is the file with which a call of that name does not return, as by a bug, or a kernel.
func Hang(call string) string { return "hang-" + call }

// option names the host's directory.
const option = "host"

// Options are the backend options of a dataplane on a host with that directory.
func Options(dir string) map[string]string { return map[string]string{option: dir} }

// Dataplane is dataplane.Fake on a host.
type Dataplane struct {
	kernel *Kernel
	config dataplane.Config
	// exit ends the process, exited tells that it has.
	exit   func()
	exited func() bool
}

// Kernel holds the records of a host's dataplane.
type Kernel struct {
	mu   sync.Mutex // guards fake while it is called
	fake dataplane.Fake
	// Features are those of the dataplane beside the ones of dataplane.Fake.
	Features []dataplane.Feature
}

// Changes are all that were applied.
func (k *Kernel) Changes() []dataplane.Change {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.fake.Changes)
}

// Refuse has the dataplane refuse the records for which why is not empty.
func (k *Kernel) Refuse(why func(record string) string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fake.Refuse = why
}

// Dump returns what is held, in the model's own text form.
func (k *Kernel) Dump() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fake.Dump()
}

// Restart forgets what a new process of the dataplane does not know.
func (k *Kernel) Restart() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fake.Restart()
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// New returns a dataplane that is served by a process of its own.
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

// Describe returns a dataplane with every feature of dataplane.Fake, and with those of the kernel.
func (d *Dataplane) Describe(ctx context.Context) (dataplane.Description, error) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	description, err := d.kernel.fake.Describe(ctx)
	description.Features = append(description.Features, d.kernel.Features...)
	return description, err
}

// Preflight finds Module and Sysctl.
func (d *Dataplane) Preflight(_ context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	if err := d.hang(config, "Preflight"); err != nil {
		return nil, err
	}
	if has(config, Mute) {
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

// Configure fails as a kernel does that lacks the module.
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
	if has(d.config, End) {
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

// Host is a machine on which plugins run in the test's own process. What its kernel holds outlives them.
type Host struct {
	t      testing.TB
	Dir    string
	Kernel Kernel
}

// NewHost returns a host that has nothing.
func NewHost(t testing.TB) *Host { return &Host{t: t, Dir: t.TempDir()} }

// Has gives the host files.
func (h *Host) Has(files ...string) {
	h.t.Helper()
	for _, file := range files {
		path := filepath.Join(h.Dir, file)
		require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(h.t, os.WriteFile(path, nil, 0o600))
	}
}

// HasNoMore takes a file from the host.
func (h *Host) HasNoMore(file string) {
	h.t.Helper()
	require.NoError(h.t, os.Remove(filepath.Join(h.Dir, file)))
}

// Start starts a plugin.
func (h *Host) Start() *Process {
	h.Kernel.Restart()
	p := &Process{gone: make(chan struct{})}
	p.Dataplane = &Dataplane{kernel: &h.Kernel, exit: p.Stop, exited: p.Exited}
	return p
}

// Process is a plugin that runs in the test's own process. Calls of the dataplane fail once it has ended.
type Process struct {
	*Dataplane
	once sync.Once
	gone chan struct{}
}

// Exited tells whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// Stop ends the process.
func (p *Process) Stop() { p.once.Do(func() { close(p.gone) }) }

// Kill ends the process.
func (p *Process) Kill() error {
	p.Stop()
	return nil
}

// Watch returns when the process has ended, or ctx has.
func (p *Process) Watch(ctx context.Context, _ func(dataplane.Fault)) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.gone:
		return errEnded
	}
}

// Ask has a tenant ask the hub for a LoadBalancer with so many ports, at the addresses.
func Ask(hub *translate.Hub, tenant string, ports int32, vips ...netip.Addr) {
	hub.SetTenant(translate.Tenant{Name: tenant, BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	lb := translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: "lb"}, Type: "LoadBalancer", VIPs: vips, Addresses: []translate.Address{{IP: "198.51.100.1"}}}
	for n := range ports {
		lb.Ports, lb.EndpointPorts = append(lb.Ports, translate.Port{Number: 1 + n}), append(lb.EndpointPorts, translate.Port{Number: 30000})
	}
	hub.SetLoadBalancer(lb)
}
