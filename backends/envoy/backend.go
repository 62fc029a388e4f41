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

// Version is the version of this dataplane.
const Version = "0.1.0"

// Backend implements dataplane.Dataplane. Its zero value is ready to use.
type Backend struct {
	dir     supervisor.Dir
	state   *store
	xds     *xds
	ruleset *ruleset
	// affinity chooses endpoints for clients of frontends with session affinity.
	affinity *affinity
	serving  bool
	// closed is set by the first Close. After it only Close does anything.
	closed           bool
	removedEndpoints removedEndpoints
	// listening are TCP frontends for which Envoy is known to listen.
	listening map[model.FrontendKey]bool
	// formerConnections are frontends with connections of a former tenant that the kernel cannot end.
	formerConnections map[model.FrontendKey]bool
	// assignmentNames are the names of the load assignments that frontends have had.
	assignmentNames map[model.FrontendKey]map[string]bool
	// stop ends the sweeper when it is closed.
	stop chan struct{}
	// notes are the notes for Describe about data that cannot be written to disk. Describe does not wait for other calls.
	notes atomic.Pointer[[]string]
	// mu is held by calls, by the sweeper and by Watch.
	mu sync.Mutex
	settings
	// memoryKB is how much of Envoy's memory all frontends together may take.
	memoryKB int
	wanted   supervisor.Wanted
}

var _ dataplane.Dataplane = (*Backend)(nil)

// Describe returns name, version and features, and notes about data that cannot be written to disk.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	var notes []string
	if noted := b.notes.Load(); noted != nil {
		notes = *noted
	}
	d := description()
	d.Notes = notes
	return d, nil
}

// description has no notes. Direct is no feature, since answers come back through Envoy. RateLimits is none, since Envoy has such limits for TCP only.
func description() dataplane.Description {
	return dataplane.Description{Name: "envoy", Version: Version, Features: []dataplane.Feature{
		dataplane.SourceRanges, dataplane.Affinity, dataplane.AffinityTimeout, dataplane.Weights, dataplane.Drain, dataplane.ICMPEcho, dataplane.PathMTU, dataplane.ProxyProtocol, dataplane.Transparent, dataplane.IdleTimeout, dataplane.Redirects, dataplane.Limits}}
}

// Configure adopts what an earlier process left, and ensures that an Envoy runs.
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
	b.updateNotes()
	b.ruleset, b.xds, b.removedEndpoints = newRuleset(b.table), newXDS(), newRemovedEndpoints()
	b.listening, b.formerConnections, b.assignmentNames = map[model.FrontendKey]bool{}, map[model.FrontendKey]bool{}, map[model.FrontendKey]map[string]bool{}
	if err := b.adopt(); err != nil {
		return err
	}
	return b.runEnvoy()
}

func (b *Backend) updateNotes() {
	var notes []string
	for _, note := range []string{b.state.note(), b.affinity.note()} {
		if note != "" {
			notes = append(notes, note)
		}
	}
	b.notes.Store(&notes)
}

func (b *Backend) serve() error {
	if b.serving {
		return nil
	}
	b.serving, b.stop = true, make(chan struct{})
	go b.sweepRemovedEndpoints(b.stop)
	return b.xds.serve(b.dir.XDS(), b.affinity.register)
}

// runEnvoy ensures that the wanted Envoy runs.
func (b *Backend) runEnvoy() error {
	binary := besideThis("kubelb-envoy")
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("kubelb-envoy, which starts Envoy, is not in the directory of this plugin: install both together: %w", err)
	}
	return b.dir.Want(b.wanted, binary)
}

// Applied returns the digests of the records that Envoy has. Whether it has a pending frontend is unknown: without a digest the manager sends or deletes it.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	digests := b.state.snapshot().Digests()
	for key := range b.state.pending {
		digests.Frontends[key] = ""
	}
	return dataplane.Applied{Digests: digests}, nil
}

// Watch reports problems of Envoy and of the nftables rules.
func (b *Backend) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	return dataplane.Poll(ctx, dataplane.WatchInterval, func(now time.Time) {
		for _, fault := range b.faults() {
			fault.Time = now
			report(fault)
		}
	})
}

// faults returns the current problems. After Close there are none, since things are removed on purpose.
func (b *Backend) faults() []dataplane.Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.updateNotes()
	var faults []dataplane.Fault
	for _, err := range []error{b.problem(), b.ruleset.echo.ensureChains(), b.ruleset.redirector.sync()} {
		if err != nil {
			faults = append(faults, dataplane.Fault{Message: err.Error()})
		}
	}
	if b.serving && b.ruleset.missing() {
		faults = append(faults, dataplane.Fault{Resync: true, Message: "another program has removed an nftables table, routing rule or route of the Envoy dataplane"})
	}
	return faults
}

// problem returns what is wrong with Envoy's supervisor, and starts it if it does not run.
func (b *Backend) problem() error {
	pid, err := b.dir.Supervisor()
	if err != nil {
		return err
	}
	if pid == 0 {
		return errors.Join(errors.New("kubelb-envoy had ended; it is started again"), b.runEnvoy())
	}
	running, err := b.dir.Running()
	if err == nil && running.Problem != "" {
		err = errors.New(running.Problem)
	}
	return err
}
