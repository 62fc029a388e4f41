package envoy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/envoy/supervisor"
	"kubelb.k8c.io/core/model"
)

// Version is this backend's version.
const Version = "0.1.0"

// Backend implements dataplane.Dataplane. Its zero value is ready.
type Backend struct {
	dir   supervisor.Dir
	state *store
	xds   *xds
	guard *guard
	// affinity chooses endpoints for clients of frontends with session affinity.
	affinity *affinity
	serving  bool
	// closed is true from the first Close on: nothing is done then but what Close does.
	closed     bool
	departures departures
	// listening are TCP frontends that have had a socket since they are served.
	listening map[model.FrontendKey]bool
	// lingering are frontends that have connections of a former tenant, which the kernel cannot end.
	lingering map[model.FrontendKey]bool
	// assigned are the names of the assignments that frontends have had.
	assigned map[model.FrontendKey]map[string]bool
	// stop ends the sweeper when it is closed.
	stop chan struct{}
	// noted are the notes for Describe on what cannot be written to disk. Describe waits for no other call.
	noted atomic.Pointer[[]string]
	// mu keeps the sweeper and Watch out while a call runs.
	mu sync.Mutex
	settings
	// memoryKB is how much of Envoy's memory all frontends together may take.
	memoryKB int
	wanted   supervisor.Wanted
}

var _ dataplane.Dataplane = (*Backend)(nil)

// Describe returns name, version and features, and notes on what cannot be written to disk.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	var notes []string
	if noted := b.noted.Load(); noted != nil {
		notes = *noted
	}
	d := description()
	d.Notes = notes
	return d, nil
}

// description is without notes. Direct is not among the features, since answers come back by Envoy, nor are limits of new connections, which Envoy has
// for TCP only.
func description() dataplane.Description {
	return dataplane.Description{Name: "envoy", Version: Version, Features: []dataplane.Feature{
		dataplane.SourceRanges, dataplane.Affinity, dataplane.AffinityTimeout, dataplane.Weights, dataplane.Drain, dataplane.ICMPEcho, dataplane.PathMTU, dataplane.ProxyProtocol, dataplane.Transparent, dataplane.IdleTimeout, dataplane.Handover, dataplane.Limits}}
}

// Configure takes over what an earlier process left, and sees that an Envoy runs.
func (b *Backend) Configure(ctx context.Context, config dataplane.Config) error {
	var err error
	if b.settings, err = parseOptions(config.Options); err != nil {
		return err
	}
	if b.memoryKB, err = b.memory(); err != nil {
		return err
	}
	envoy, err := findEnvoy(ctx, b.envoy)
	if err != nil {
		return err
	}
	b.dir = supervisor.Dir(filepath.Join(config.StateDir, "envoy"))
	if err := os.MkdirAll(string(b.dir), 0o700); err != nil {
		return err
	}
	text, err := bootstrapFor(b.dir)
	if err != nil {
		return err
	}
	b.wanted = supervisor.Wanted{Envoy: envoy, Bootstrap: text, Concurrency: b.concurrency, DrainSeconds: int(b.drainTime.Seconds())}
	if b.state, err = openStore(filepath.Join(string(b.dir), "state.journal")); err != nil {
		return err
	}
	b.affinity = openAffinity(string(b.dir), b.state.frontends)
	b.noteState()
	b.guard, b.xds, b.departures = newGuard(b.table), newXDS(), newDepartures()
	b.listening, b.lingering, b.assigned = map[model.FrontendKey]bool{}, map[model.FrontendKey]bool{}, map[model.FrontendKey]map[string]bool{}
	if err := b.takeOver(); err != nil {
		return err
	}
	return b.runEnvoy()
}

func (b *Backend) noteState() {
	var notes []string
	for _, note := range []string{b.state.note(), b.affinity.note()} {
		if note != "" {
			notes = append(notes, note)
		}
	}
	b.noted.Store(&notes)
}

func (b *Backend) serve() error {
	if b.serving {
		return nil
	}
	b.serving, b.stop = true, make(chan struct{})
	go b.sweep(b.stop)
	return b.xds.serve(b.dir.XDS(), b.affinity.register)
}

// runEnvoy sees that the Envoy runs that is wanted.
func (b *Backend) runEnvoy() error {
	binary := beside("kubelb-envoy")
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("kubelb-envoy, which starts Envoy, is not beside this plugin: install both together: %w", err)
	}
	return b.dir.Want(b.wanted, binary)
}

// Applied returns the digests of what Envoy was given.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	digests := b.state.snapshot().Digests()
	for key := range b.state.pending {
		delete(digests.Frontends, key)
	}
	return dataplane.Applied{Digests: digests}, nil
}

// Watch reports an Envoy that is gone, and a guard that somebody else has taken away.
func (b *Backend) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	return dataplane.Poll(ctx, dataplane.WatchInterval, func(now time.Time) {
		for _, fault := range b.faults() {
			fault.Time = now
			report(fault)
		}
	})
}

// faults are what is wrong now. After Close there are none: what is gone then is gone rightly, and stays so.
func (b *Backend) faults() []dataplane.Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.noteState()
	var faults []dataplane.Fault
	for _, err := range []error{b.problem(), b.guard.echo.cover(), b.guard.asking.cover()} {
		if err != nil {
			faults = append(faults, dataplane.Fault{Message: err.Error()})
		}
	}
	if b.serving && b.guard.missing() {
		faults = append(faults, dataplane.Fault{Resync: true, Message: "nftables table or routing rule of the Envoy backend was removed by somebody else"})
	}
	return faults
}

// problem says what is wrong with Envoy's supervisor, and starts it if it is gone.
func (b *Backend) problem() error {
	pid, err := b.dir.Supervisor()
	if err != nil {
		return err
	}
	if pid == 0 {
		return errors.Join(errors.New("kubelb-envoy did not run; it is started again"), b.runEnvoy())
	}
	running, err := b.dir.Running()
	if err == nil && running.Problem != "" {
		err = errors.New(running.Problem)
	}
	return err
}
