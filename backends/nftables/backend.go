package nftables

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/routes"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// Version is the version of this dataplane.
const Version = "0.1.0"

// Backend implements dataplane.Dataplane. Its zero value is ready to use.
type Backend struct {
	tables []*table
	egress *egress
	fast   *fastPath
	// unreadable is why existing tables were replaced, nil if they were not.
	unreadable error
	// routes records changes while Watch runs. directProblem is the last reported problem with endpoints of direct frontends.
	routes        routes.Changes
	directProblem string
	// mu guards the state of the tables. Calls that change it hold it, and Watch while it reads it.
	mu sync.Mutex
}

var _ dataplane.Dataplane = (*Backend)(nil)

// Describe returns name, version and features, and once configured a note about the fast path.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	var notes []string
	if b.fast != nil {
		notes = append(notes, b.fast.currentNote())
	}
	if b.unreadable != nil {
		notes = append(notes, fmt.Sprintf("the tables were replaced, since the existing ones could not be read (%v)", b.unreadable))
	}
	return dataplane.Description{Notes: notes, Name: "nftables", Version: Version, Features: []dataplane.Feature{
		dataplane.SourceRanges, dataplane.Affinity, dataplane.AffinityTimeout, dataplane.Weights, dataplane.MaglevTable, dataplane.Drain, dataplane.ICMPEcho, dataplane.PathMTU, dataplane.Refusal, dataplane.Transparent,
		dataplane.Direct, dataplane.Redirects, dataplane.Limits, dataplane.RateLimits, dataplane.PacketHeaders}}, nil
}

// Configure checks the host and adopts or creates the tables.
func (b *Backend) Configure(_ context.Context, config dataplane.Config) error {
	o, err := parseOptions(config.Options)
	if err != nil {
		return err
	}
	if err := checkForwarding(); err != nil {
		return err
	}
	egress := newEgress(o.table)
	var tables []*table
	for _, f := range families {
		tables = append(tables, newTable(f, egress))
	}
	unreadable, err := open(tables, egress)
	if err != nil {
		return err
	}
	fast, err := openFastPath(tables, o.flowtable)
	if err != nil {
		return err
	}
	b.tables, b.egress, b.fast, b.unreadable = tables, egress, fast, unreadable
	return nil
}

// Applied returns the digests in the kernel's tables.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	applied := dataplane.Applied{Digests: model.NewDigests()}
	for _, t := range b.tables {
		t.state.digests(applied.Digests)
	}
	return applied, nil
}

// Watch reports missing tables, adapts the fast path and direct flows to the host's interfaces and routes, deletes connections that have ended, and
// deletes clients of former frontends.
func (b *Backend) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	var listening sync.WaitGroup
	defer listening.Wait()
	listening.Go(func() {
		b.routes.Listen(ctx, func(err error) { report(dataplane.Fault{Time: time.Now(), Message: err.Error()}) })
	})
	sweeps := map[*table]*clientSweep{}
	defer endSweeps(sweeps)
	var looked time.Time
	return dataplane.Poll(ctx, endsInterval, func(now time.Time) {
		if err := b.dropEnded((*table).dropEnded); err != nil {
			report(dataplane.Fault{Time: now, Message: err.Error()})
		}
		if err := b.sweepClients(now, sweeps); err != nil {
			report(dataplane.Fault{Time: now, Message: err.Error()})
		}
		if now.Sub(looked) < dataplane.WatchInterval {
			return
		}
		looked = now
		if missing := b.lockedMissing(); missing != "" {
			report(dataplane.Fault{Time: now, Resync: true, Message: "another program has removed " + missing})
			return
		}
		if problem := b.followDirectRoutes(now); problem != "" {
			report(dataplane.Fault{Time: now, Message: problem})
		}
		if trouble := b.followHost(); trouble != "" {
			report(dataplane.Fault{Time: now, Message: trouble})
		}
		if err := b.dropEnded((*table).dropClosing); err != nil {
			report(dataplane.Fault{Time: now, Message: err.Error()})
		}
	})
}

// followHost adapts the fast path to the host, and returns a new problem, empty if there is none.
func (b *Backend) followHost() (trouble string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fast == nil || b.fast.disabled {
		return ""
	}
	return b.fast.sync()
}

// dropEnded deletes connections that have ended after their endpoint left, in each table.
func (b *Backend) dropEnded(drop func(*table) error) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.tables {
		err = errors.Join(err, drop(t))
	}
	if err != nil {
		return fmt.Errorf("delete connections that have ended: %w", err)
	}
	return nil
}

// lockedMissing is missing with the lock held.
func (b *Backend) lockedMissing() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.missing()
}

// missing returns the name of a table or chain that is missing, empty if none is.
func (b *Backend) missing() string {
	c, err := elements.Connect()
	if err != nil {
		return ""
	}
	for _, t := range b.tables {
		if _, current, err := find(c, t.nft); err == nil && !current {
			return "table " + t.layout.name + " " + t.nft.Name
		}
	}
	if _, current, err := find(c, b.egress.nft); err == nil && !current {
		return "table netdev " + b.egress.nft.Name
	}
	if name := b.egress.missingChain(c); name != "" {
		return "chain " + egressChain + name
	}
	return ""
}
