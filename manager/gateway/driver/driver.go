// Package driver runs the plugin of a dataplane and brings the dataplane to the model. It starts the process and gives each call a deadline. It sends
// changes in batches in which tenants take turns. After a restart it sends the difference to what the dataplane holds. It purges former backends of
// this host.
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
	"time"

	"golang.org/x/sync/errgroup"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/backlog"
	"kubelb.k8c.io/core/model"
)

// Process is a running plugin.
type Process interface {
	dataplane.Dataplane
	// Exited reports whether the process has ended.
	Exited() bool
	// Stop ends the process, Kill by force. Its state in the kernel stays.
	Stop()
	Kill() error
}

// Model is what the dataplane is to hold.
type Model interface {
	Snapshot() model.Snapshot
	Pool(model.PoolID) (model.Pool, bool)
	Frontend(model.FrontendKey) (model.Frontend, bool)
	// Owner returns the LoadBalancer of a frontend.
	Owner(model.FrontendKey) (model.ObjectName, bool)
}

// Addresses is told which addresses the dataplane holds.
type Addresses interface {
	// SetTenant sets the tenant of an address of which the dataplane holds at least a part.
	SetTenant(address netip.Addr, tenant string)
	// Add says that the dataplane holds all frontends of an address that it can take. It may be called again.
	Add(address netip.Addr)
	// Remove says that the last frontend of an address is about to leave the dataplane.
	Remove(address netip.Addr)
}

// Observer counts what the driver does.
type Observer interface {
	Started()
	Applied(took time.Duration)
}

// Options configure a Driver.
type Options struct {
	Plugin    Plugin
	Model     Model
	Addresses Addresses
	Observer  Observer
	// Load starts the plugin. Nil starts a process.
	Load func(plugin.Options) (Process, error)
	// Redirect returns to which gateway packets of unknown connections to an address are redirected.
	Redirect func(netip.Addr) model.Redirect
	// InSync is called each time that the dataplane was brought to the model: it holds everything that it can take.
	InSync func()
	Log    *slog.Logger
}

// Driver brings a dataplane to the model. It is not safe for concurrent use, except for Run and RetryInstalled.
type Driver struct {
	options Options
	log     *slog.Logger
	runner  *runner
	ended   chan Process
	// installed are the backends that may have state on this host.
	installed *installedBackends
	// apply sends one change.
	apply func(context.Context, model.Delta) ([]dataplane.RecordError, error)

	// version is the highest resource version of the changes that the driver got.
	version uint64
	// backlog is what the dataplane is still to be sent. unsupported are frontends that need a feature which the plugin lacks, or which the dataplane
	// refuses while it holds them for another tenant. quarantine are records that wait.
	backlog     *backlog.Backlog
	unsupported map[model.FrontendKey]dataplane.RecordError
	quarantine  quarantine
	failures    map[string]Failure
	// syncing is nil once the dataplane was sent everything that it lacked at its start.
	syncing *syncing
	// resyncing: the plugin is being started, or brought to the model. outOfStep: the last batch failed since the plugin was not at its base
	// generation.
	resyncing, outOfStep bool
	// synced: the dataplane has held everything since this driver started.
	synced bool
	// retryAt is when an ended plugin is started again, or failed records are sent again.
	retryAt time.Time
	backoff time.Duration
	// problem is why the dataplane takes no changes.
	problem error

	// held are the frontends that the dataplane holds. replacing are addresses whose frontends are all being replaced. These addresses stay
	// announced.
	held      heldFrontends
	replacing map[netip.Addr]bool

	// rechecks gets the process that is to repeat its preflight. rechecking: that is under way.
	rechecks   chan Process
	rechecking bool
	// purgeNow gets a value when the dataplane holds everything. unpurged are the reasons why former backends could not be purged, by name.
	purgeNow chan struct{}
	unpurged map[string]string
}

// New returns a driver whose plugin does not run yet.
func New(o Options) *Driver {
	if o.Load == nil {
		o.Load = load
	}
	d := &Driver{options: o, log: o.Log, ended: make(chan Process, 4), installed: newInstalledBackends(filepath.Join(o.Plugin.Config.StateDir, installedFile)),
		backlog: backlog.New(), unsupported: map[model.FrontendKey]dataplane.RecordError{}, quarantine: quarantine{}, failures: map[string]Failure{},
		held: heldFrontends{byAddress: map[netip.Addr]map[model.FrontendKey]bool{}}, replacing: map[netip.Addr]bool{},
		rechecks: make(chan Process, 1), purgeNow: make(chan struct{}, 1)}
	d.runner = &runner{backend: o.Plugin, load: o.Load, installed: d.installed, limits: defaultLimits(), log: o.Log, observer: o.Observer,
		epoch: dataplane.NewEpoch(time.Now()), ended: d.ended}
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

// Run repeats preflights and purges former backends until ctx ends. It hands the results to the loop.
func (d *Driver) Run(ctx context.Context, post Post) error {
	runs, ctx := errgroup.WithContext(ctx)
	runs.Go(func() error { return d.recheckLoop(ctx, post) })
	runs.Go(func() error { return d.purgeFormerBackends(ctx, post) })
	return runs.Wait()
}

// DuringCall sets a function that runs during each call of the plugin. It returns when done is closed or ctx ends. It may be nil.
func (d *Driver) DuringCall(f func(ctx context.Context, done <-chan struct{})) {
	d.runner.duringCall = f
}

// Sync brings the dataplane closer to the model by one batch. The delta leads from the model of the last version to the model of this version.
func (d *Driver) Sync(ctx context.Context, delta model.Delta, version uint64) {
	before := d.version
	d.version = version
	d.withdraw(delta)
	if err := d.reconcile(ctx, delta, before); err != nil {
		if d.problem == nil || d.problem.Error() != err.Error() { // a retry may fail with the same error
			d.log.Error("bring the dataplane to the model", "error", err)
		}
		d.fail(err)
	}
}

func (d *Driver) fail(err error) {
	d.problem = err
	d.restartLater()
}

// Ended receives processes that have ended, or have lost their state. See HandleEnd.
func (d *Driver) Ended() <-chan Process { return d.ended }

// HandleEnd plans a restart of the plugin if the process is the present one, and returns whether it is.
func (d *Driver) HandleEnd(process Process) bool {
	if process != d.runner.process {
		return false
	}
	d.log.Warn("the plugin has ended or lost its state: it is started again")
	d.restartLater()
	return true
}

// minBackoff is the least pause before a plugin is started again, from its second end on.
const minBackoff = 250 * time.Millisecond

// restartLater ends the process and sets the time of the next start: at once after the first end, then later each time.
func (d *Driver) restartLater() {
	if errors.Is(d.problem, errHang) {
		d.runner.kill()
		d.backoff = max(d.backoff, hangBackoff)
	}
	d.runner.stop()
	d.syncing = nil
	d.retryAt = time.Now().Add(d.backoff)
	d.backoff = min(max(2*d.backoff, minBackoff), 30*time.Second)
}

// Stop ends the plugin. The state of the dataplane stays.
func (d *Driver) Stop() { d.runner.stop() }

// Purge removes everything from the dataplane. It starts the plugin if it does not run: a former process may have left state.
func (d *Driver) Purge(ctx context.Context) error {
	if !d.Running() {
		if err := d.runner.start(ctx); err != nil {
			return fmt.Errorf("purge: %w", err)
		}
	}
	return d.runner.process.Close(ctx, true)
}

// RemoveInstalled removes the backend from the list of installed backends after a purge: later backends need not purge it.
func (d *Driver) RemoveInstalled() error { return d.installed.remove(d.options.Plugin.Name()) }

// Running reports whether the plugin runs.
func (d *Driver) Running() bool { return d.runner.running() }

// Process returns the present process, nil for none.
func (d *Driver) Process() Process { return d.runner.process }

// Calling returns the call that the plugin has not answered yet, nil for none.
func (d *Driver) Calling() *Call { return d.runner.calling }

// CallingSince returns when the call began that the plugin has not answered yet, zero for none.
func (d *Driver) CallingSince() time.Time {
	if d.runner.calling == nil {
		return time.Time{}
	}
	return d.runner.calling.Began
}

// Description returns what the plugin says that it is and can do.
func (d *Driver) Description() dataplane.Description { return d.runner.description }

// Generation returns the last generation that the dataplane confirmed.
func (d *Driver) Generation() dataplane.Generation { return d.runner.generation }

// SetNotes sets the notes of the process, unless it is a former one.
func (d *Driver) SetNotes(process Process, notes []string) {
	if process == d.runner.process {
		d.runner.setNotes(notes)
	}
}

// Problem returns why the dataplane takes no changes, nil if it does.
func (d *Driver) Problem() error { return d.problem }

// Resyncing reports whether the plugin is being started, or brought to the model.
func (d *Driver) Resyncing() bool { return d.resyncing }

// Synced reports whether the dataplane has held everything since this driver started.
func (d *Driver) Synced() bool { return d.synced }

// StateKnown reports whether it is known now what the dataplane holds, and for which tenants.
func (d *Driver) StateKnown() bool {
	read := d.syncing != nil || d.problem == nil && !d.resyncing
	return read && d.Running() && d.runner.calling == nil
}

// Version returns the version up to which the dataplane holds the records of all tenants, except those of Behind.
func (d *Driver) Version() uint64 { return d.version }

// Behind returns the tenants for which the dataplane is behind, and the version up to which it holds all records of each. known is false while the
// dataplane holds frontends of unknown tenants.
func (d *Driver) Behind() (behind map[string]uint64, known bool) { return d.backlog.Behind() }

// HeldCount returns the number of frontends that the dataplane holds.
func (d *Driver) HeldCount() int { return d.held.count }

// Serves reports whether the dataplane holds the frontend as the model has it.
func (d *Driver) Serves(key model.FrontendKey) bool {
	_, refused := d.unsupported[key]
	return d.held.has(key) && !refused
}

// Failures returns the records that the dataplane did not take, by name. The caller must not change them.
func (d *Driver) Failures() map[string]Failure { return d.failures }

// Unpurged returns why former backends could not be purged, by name.
func (d *Driver) Unpurged() map[string]string { return d.unpurged }

// RetryAt returns when something is to be tried again, zero for nothing.
func (d *Driver) RetryAt() time.Time { return d.retryAt }

// HasWork reports whether there is a batch to send now.
func (d *Driver) HasWork() bool { return !d.backlog.Empty() && d.Running() }
