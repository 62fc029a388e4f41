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

// Version is this backend's version.
const Version = "0.1.0"

// Backend implements dataplane.Dataplane. Its zero value is ready.
type Backend struct {
	tables []*table
	egress *egress
	fast   *fastPath
	// unread is why the tables were made anew, though there were some.
	unread error
	// routes are heard while Watch runs. strayed is what it has said of endpoints of direct frontends.
	routes  routes.Changes
	strayed string
	// busy is held by whoever changes what the tables should hold, and by Watch while it looks at that.
	busy sync.Mutex
}

var _ dataplane.Dataplane = (*Backend)(nil)

// Describe tells name, version and features, and once configured whether flows take the fast path now.
func (b *Backend) Describe(context.Context) (dataplane.Description, error) {
	var notes []string
	if b.fast != nil {
		notes = append(notes, b.fast.says())
	}
	if b.unread != nil {
		notes = append(notes, fmt.Sprintf("tables made anew: what was there could not be read (%v)", b.unread))
	}
	return dataplane.Description{Notes: notes, Name: "nftables", Version: Version, Features: []dataplane.Feature{
		dataplane.SourceRanges, dataplane.Affinity, dataplane.AffinityTimeout, dataplane.Weights, dataplane.Drain, dataplane.ICMPEcho, dataplane.PathMTU, dataplane.Refusal, dataplane.Transparent, dataplane.Direct, dataplane.Handover, dataplane.Limits, dataplane.RateLimits}}, nil
}

// Configure checks the host and takes over, or makes, the tables.
func (b *Backend) Configure(_ context.Context, config dataplane.Config) error {
	o, err := readOptions(config.Options)
	if err != nil {
		return err
	}
	if err := requireForwarding(); err != nil {
		return err
	}
	egress := newEgress(o.table)
	var tables []*table
	for _, f := range families {
		tables = append(tables, newTable(f, egress))
	}
	unread, err := open(tables, egress)
	if err != nil {
		return err
	}
	fast, err := openFastPath(tables, o.flowtable)
	if err != nil {
		return err
	}
	b.tables, b.egress, b.fast, b.unread = tables, egress, fast, unread
	return nil
}

// Applied returns the digests that stand in the kernel.
func (b *Backend) Applied(context.Context) (dataplane.Applied, error) {
	applied := dataplane.Applied{Digests: model.NewDigests()}
	for _, t := range b.tables {
		t.state.digests(applied.Digests)
	}
	return applied, nil
}

// Watch reports when the tables are gone, keeps the fast path and direct flows at the host's interfaces, looks for connections that have ended, and
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
		if missing := b.lost(); missing != "" {
			report(dataplane.Fault{Time: now, Resync: true, Message: missing + " was removed by somebody else"})
			return
		}
		if strayed := b.followDirect(now); strayed != "" {
			report(dataplane.Fault{Time: now, Message: strayed})
		}
		if trouble := b.followHost(); trouble != "" {
			report(dataplane.Fault{Time: now, Message: trouble})
		}
		if err := b.dropEnded((*table).dropClosing); err != nil {
			report(dataplane.Fault{Time: now, Message: err.Error()})
		}
	})
}

// followHost has the fast path follow the host, and returns what is new and bad about that.
func (b *Backend) followHost() (trouble string) {
	b.busy.Lock()
	defer b.busy.Unlock()
	if b.fast == nil || b.fast.final {
		return ""
	}
	return b.fast.follow()
}

// dropEnded has each table drop connections that have ended after their endpoint had left.
func (b *Backend) dropEnded(drop func(*table) error) (err error) {
	b.busy.Lock()
	defer b.busy.Unlock()
	for _, t := range b.tables {
		err = errors.Join(err, drop(t))
	}
	if err != nil {
		return fmt.Errorf("look for connections that have ended: %w", err)
	}
	return nil
}

// lost is missing where nothing changes meanwhile.
func (b *Backend) lost() string {
	b.busy.Lock()
	defer b.busy.Unlock()
	return b.missing()
}

// missing names what should be there and is not.
func (b *Backend) missing() string {
	c, err := elements.Connect()
	if err != nil {
		return ""
	}
	for _, t := range b.tables {
		if _, ours, err := find(c, t.nft); err == nil && !ours {
			return "table " + t.layout.name + " " + t.nft.Name
		}
	}
	if _, ours, err := find(c, b.egress.nft); err == nil && !ours {
		return "table netdev " + b.egress.nft.Name
	}
	if name := b.egress.lost(c); name != "" {
		return "chain " + egressChain + name
	}
	return ""
}
