// Package driver runs a dataplane's plugin and brings the dataplane to the model. It starts the process, gives each call a deadline, sends changes in
// batches in which tenants take turns, sends the difference to what the dataplane holds after a restart, and purges backends that were here before.
//
// A Driver belongs to the gateway's loop.
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/backlog"
	"kubelb.k8c.io/core/model"
)

// Process is a plugin that runs.
type Process interface {
	dataplane.Dataplane
	// Exited tells whether the process is gone.
	Exited() bool
	// Stop ends the process, Kill by force. What it holds in the kernel stays.
	Stop()
	Kill() error
}

// Model is what the dataplane is to hold.
type Model interface {
	Snapshot() model.Snapshot
	Pool(model.PoolID) (model.Pool, bool)
	Frontend(model.FrontendKey) (model.Frontend, bool)
	// Owner is the LoadBalancer that a frontend is served for.
	Owner(model.FrontendKey) (model.ObjectName, bool)
}

// Addresses follows which addresses the dataplane holds.
type Addresses interface {
	// SetTenant says whose an address is that the dataplane holds in part.
	SetTenant(address netip.Addr, tenant string)
	// Add says that the dataplane holds all frontends of an address that it can take. It may be said again.
	Add(address netip.Addr)
	// Remove says that the last frontend of an address is about to leave the dataplane.
	Remove(address netip.Addr)
}

// Observer counts what the driver does.
type Observer interface {
	Started()
	Applied(took time.Duration)
}

// Options are what a driver needs.
type Options struct {
	Backend   Backend
	Model     Model
	Addresses Addresses
	Observer  Observer
	// Load starts the plugin. Nil starts a process.
	Load func(plugin.Options) (Process, error)
	// Redirect is to which gateway packets of unknown connections to an address are redirected.
	Redirect func(netip.Addr) model.Handover
	// InSync is called when the dataplane holds everything that it can take, each time after it has been brought to the model.
	InSync func()
	Log    *slog.Logger
}

// Driver brings a dataplane to the model. It is not safe for concurrent use, except for Run and SettleInstalled.
type Driver struct {
	options Options
	log     *slog.Logger
	runner  *runner
	ended   chan Process
	// installed are the backends that may hold something on this host.
	installed *installedBackends
	// apply sends one change.
	apply func(context.Context, model.Delta) ([]dataplane.RecordError, error)

	// version is the highest resource version of the changes that the driver was given.
	version uint64
	// backlog is what the dataplane is still to be sent. unsupported are frontends that it lacks a feature for, or refuses where it holds another
	// tenant's. quarantine are records that wait.
	backlog     *backlog.Backlog
	unsupported map[model.FrontendKey]dataplane.RecordError
	quarantine  quarantine
	failures    map[string]Failure
	// syncing is nil when the dataplane was sent all that it lacked at its start.
	syncing *syncing
	// resyncing: the plugin is being started, and brought to the model. outOfStep: it was not at its base generation.
	resyncing, outOfStep bool
	// synced: the dataplane has held everything since this driver began.
	synced bool
	// retryAt is when a plugin that has ended is started again, or records that failed are sent again.
	retryAt time.Time
	backoff time.Duration
	// problem is why the dataplane takes nothing new, until it does again.
	problem error

	// exchanging are addresses all of whose frontends are being exchanged. They are announced meanwhile.
	held       holdings
	exchanging map[netip.Addr]bool

	// rechecks take the process whose preflight is made again. rechecking: that is under way.
	rechecks   chan Process
	rechecking bool
	// purgeNow is told when the dataplane holds everything. unpurged are why former backends could not be purged, by name.
	purgeNow chan struct{}
	unpurged map[string]string
}

// New returns a driver whose plugin does not run yet.
func New(o Options) *Driver {
	if o.Load == nil {
		o.Load = load
	}
	d := &Driver{options: o, log: o.Log, ended: make(chan Process, 4), installed: newInstalledBackends(filepath.Join(o.Backend.Config.StateDir, installedFile)),
		backlog: backlog.New(), unsupported: map[model.FrontendKey]dataplane.RecordError{}, quarantine: quarantine{}, failures: map[string]Failure{},
		held: holdings{of: map[netip.Addr]map[model.FrontendKey]bool{}}, exchanging: map[netip.Addr]bool{},
		rechecks: make(chan Process, 1), purgeNow: make(chan struct{}, 1)}
	d.runner = &runner{backend: o.Backend, load: o.Load, installed: d.installed, limits: defaultLimits(), log: o.Log, observer: o.Observer,
		epoch: strconv.FormatInt(time.Now().UnixNano(), 36), ended: d.ended}
	d.apply = d.runner.apply
	return d
}

// load starts the plugin as a process.
func load(o plugin.Options) (Process, error) {
	process, err := plugin.Load(o)
	if err != nil {
		return nil, err
	}
	return process, nil
}

// Post hands a function to the loop, which calls it.
type Post func(ctx context.Context, event func())

// Run makes preflights again, and purges former backends, until ctx ends. It hands the results to the loop.
func (d *Driver) Run(ctx context.Context, post Post) error {
	runs, ctx := errgroup.WithContext(ctx)
	runs.Go(func() error { return d.recheckLoop(ctx, post) })
	runs.Go(func() error { return d.purgeFormerBackends(ctx, post) })
	return runs.Wait()
}

// DuringCall sets what is done while the plugin is called: f returns when done is closed or ctx ends. Nil does nothing.
func (d *Driver) DuringCall(f func(ctx context.Context, done <-chan struct{})) {
	d.runner.duringCall = f
}

// Sync brings the dataplane closer to the model by one batch. The delta leads to the model at the version from the version before.
func (d *Driver) Sync(ctx context.Context, delta model.Delta, version uint64) {
	before := d.version
	d.version = version
	d.withdraw(delta)
	if err := d.program(ctx, delta, before); err != nil {
		if d.problem == nil || d.problem.Error() != err.Error() { // each retry would say the same
			d.log.Error("backend", "error", err)
		}
		d.fail(err)
	}
}

func (d *Driver) fail(err error) {
	d.problem = err
	d.restartLater()
}

// Ended receives processes that have ended, or report that their state was taken away. See HasEnded.
func (d *Driver) Ended() <-chan Process { return d.ended }

// HasEnded starts the plugin again later if the process is the present one, and tells whether it is.
func (d *Driver) HasEnded(process Process) bool {
	if process != d.runner.process {
		return false
	}
	d.log.Warn("backend ended or lost its state; starting it again")
	d.restartLater()
	return true
}

// leastBackoff is how long a plugin that ends is left alone at least, from its second end on.
const leastBackoff = 250 * time.Millisecond

// restartLater ends the process and sets the time of the next try: at once for the first, then ever later.
func (d *Driver) restartLater() {
	if errors.Is(d.problem, errHung) {
		d.runner.kill()
		d.backoff = max(d.backoff, hungPause)
	}
	d.runner.stop()
	d.syncing = nil
	d.retryAt = time.Now().Add(d.backoff)
	d.backoff = min(max(2*d.backoff, leastBackoff), 30*time.Second)
}

// Stop ends the plugin. What the dataplane holds stays.
func (d *Driver) Stop() { d.runner.stop() }

// Purge removes everything from the dataplane. It starts the plugin if that does not run: a former process may have left something.
func (d *Driver) Purge(ctx context.Context) error {
	if !d.Running() {
		if err := d.runner.start(ctx); err != nil {
			return fmt.Errorf("purge: %w", err)
		}
	}
	return d.runner.process.Close(ctx, true)
}

// Forget notes that the dataplane was purged: nothing is left that a later backend would have to purge.
func (d *Driver) Forget() error { return d.installed.remove(d.options.Backend.Name()) }

// Running tells whether there is a process to talk to.
func (d *Driver) Running() bool { return d.runner.running() }

// Process is the present process, nil for none.
func (d *Driver) Process() Process { return d.runner.process }

// Calling is the call that the plugin has not answered yet, nil for none.
func (d *Driver) Calling() *Call { return d.runner.calling }

// CallingSince is when the call began that the plugin has not answered yet, zero for none.
func (d *Driver) CallingSince() time.Time {
	if d.runner.calling == nil {
		return time.Time{}
	}
	return d.runner.calling.Began
}

// Description is what the plugin says that it is and can do.
func (d *Driver) Description() dataplane.Description { return d.runner.description }

// Generation is the last one that the dataplane confirmed.
func (d *Driver) Generation() dataplane.Generation { return d.runner.generation }

// SetNotes takes over what the process notes, unless it is a former one.
func (d *Driver) SetNotes(process Process, notes []string) {
	if process == d.runner.process {
		d.runner.setNotes(notes)
	}
}

// Problem is why the dataplane takes nothing new, nil if it does.
func (d *Driver) Problem() error { return d.problem }

// Resyncing tells whether the plugin is being started, and brought to the model.
func (d *Driver) Resyncing() bool { return d.resyncing }

// Synced tells whether the dataplane has held everything since this driver began.
func (d *Driver) Synced() bool { return d.synced }

// Knows tells whether it is known now what the dataplane holds, and for which tenants.
func (d *Driver) Knows() bool {
	asked := d.syncing != nil || d.problem == nil && !d.resyncing
	return asked && d.Running() && d.runner.calling == nil
}

// Version is up to which version the dataplane holds the records of tenants that are not behind, see Behind.
func (d *Driver) Version() uint64 { return d.version }

// Behind are the tenants that the dataplane is behind for, and up to which version it holds all of each. known is false while the dataplane holds
// frontends of unknown tenants.
func (d *Driver) Behind() (behind map[string]uint64, known bool) { return d.backlog.Behind() }

// Held is the number of frontends that the dataplane holds.
func (d *Driver) Held() int { return d.held.count }

// Serves tells whether the dataplane holds the frontend as the model has it.
func (d *Driver) Serves(key model.FrontendKey) bool {
	_, refused := d.unsupported[key]
	return d.held.has(key) && !refused
}

// Failures are the records that the dataplane did not take, by their names. The caller does not change them.
func (d *Driver) Failures() map[string]Failure { return d.failures }

// Unpurged are why former backends could not be purged, by name.
func (d *Driver) Unpurged() map[string]string { return d.unpurged }

// RetryAt is when something is to be tried again, zero for nothing.
func (d *Driver) RetryAt() time.Time { return d.retryAt }

// HasWork tells whether there is a batch to send now.
func (d *Driver) HasWork() bool { return !d.backlog.Empty() && d.Running() }
