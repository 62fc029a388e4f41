package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables/expr"

	nft "github.com/google/nftables"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/routes"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// Version is this backend's version.
const Version = "0.1.0"

// optionTable names the tables, for several gateways in one network namespace.
const optionTable = "table"

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
	for option := range config.Options {
		if option != optionTable && option != optionFlowtable {
			return fmt.Errorf("backend option %q: the nftables backend knows only %q and %q", option, optionTable, optionFlowtable)
		}
	}
	if err := requireForwarding(); err != nil {
		return err
	}
	name := config.Options[optionTable]
	if name == "" {
		name = "kubelb"
	}
	egress := newEgress(name)
	var tables []*table
	for _, f := range families {
		tables = append(tables, newTable(f, egress))
	}
	unread, err := open(tables, egress)
	if err != nil {
		return err
	}
	fast, err := openFastPath(tables, config.Options[optionFlowtable])
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

// record is a planned change with the way to name it if it fails.
type record struct {
	plans  []planned
	failed dataplane.RecordError
}

// Apply sends the change in transactions of bounded size; no record is split between two.
func (b *Backend) Apply(_ context.Context, c dataplane.Change) (dataplane.Result, error) {
	b.busy.Lock()
	defer b.busy.Unlock()
	a := &apply{backend: b, ended: newEnded()}
	for chunk := range slices.Chunk(c.UpsertPools, 1000) {
		a.each(len(chunk), func(i int) (record, error) {
			plans, err := b.planPoolHere(chunk[i])
			return record{plans, dataplane.RecordError{Pool: chunk[i].ID}}, err
		})
	}
	for chunk := range slices.Chunk(c.UpsertFrontends, 1000) {
		a.each(len(chunk), func(i int) (record, error) {
			plans, err := b.planFrontendHere(chunk[i])
			return record{plans, dataplane.RecordError{Frontend: chunk[i].FrontendKey}}, err
		})
	}
	a.each(len(c.DeleteFrontends), func(i int) (record, error) {
		key := c.DeleteFrontends[i]
		t := b.tableFor(key.VIP)
		return record{one(t, t.state.planFrontendGone(key)), dataplane.RecordError{Frontend: key}}, nil
	})
	a.each(len(c.DeletePools), func(i int) (record, error) {
		return record{b.planPoolGone(c.DeletePools[i]), dataplane.RecordError{Pool: c.DeletePools[i]}}, nil
	})
	return dataplane.Result{Operations: a.operations, Failed: a.failed}, a.dropStale()
}

// apply is the run of one Apply.
type apply struct {
	backend    *Backend
	operations uint64
	failed     []dataplane.RecordError
	stale      map[*table]bool
	ended      ended
}

// each plans records and sends them in transactions of bounded size.
func (a *apply) each(n int, plan func(int) (record, error)) {
	var batch []record
	edits := 0
	for i := range n {
		r, err := plan(i)
		if err != nil {
			a.fail(r, err)
			continue
		}
		for _, p := range r.plans {
			edits += len(p.edits) + p.ranges.size(p.table.state.ranges)
		}
		if batch = append(batch, r); edits >= editsPerTransaction {
			a.send(batch)
			batch, edits = nil, 0
		}
	}
	a.send(batch)
}

// send bisects a transaction that the kernel refuses down to the records that it is refused for.
func (a *apply) send(batch []record) {
	var plans []planned
	for _, r := range batch {
		plans = append(plans, r.plans...)
	}
	if len(plans) == 0 {
		return
	}
	err := transact(plans)
	switch {
	case err == nil:
		for _, p := range plans {
			a.operations += uint64(len(p.edits))
			a.ended.note(p.plan)
			if p.stale {
				a.markStale(p.table)
			}
		}
	case len(batch) == 1:
		a.fail(batch[0], err)
	default:
		a.send(batch[:len(batch)/2])
		a.send(batch[len(batch)/2:])
	}
}

func (a *apply) markStale(t *table) {
	if a.stale == nil {
		a.stale = map[*table]bool{}
	}
	a.stale[t] = true
}

func (a *apply) fail(r record, err error) {
	r.failed.Message = err.Error()
	a.failed = append(a.failed, r.failed)
}

func (a *apply) dropStale() error {
	for t := range a.stale {
		if err := t.dropStale(a.ended); err != nil {
			return err
		}
	}
	return nil
}

func one(t *table, p *plan) []planned {
	if p == nil {
		return nil
	}
	return []planned{{p, t}}
}

func (b *Backend) tableFor(address netip.Addr) *table {
	for _, t := range b.tables {
		if t.layout.v4 == address.Is4() {
			return t
		}
	}
	return nil
}

// planPoolHere plans the pool if this host can serve it.
func (b *Backend) planPoolHere(p model.Pool) ([]planned, error) {
	for _, t := range b.tables {
		if err := t.requireNeighbours(p, b.egress); err != nil {
			return nil, err
		}
	}
	return b.planPool(p)
}

// planFrontendHere plans the frontend if this host can serve it.
func (b *Backend) planFrontendHere(f model.Frontend) ([]planned, error) {
	if f.Forwarding == model.Direct {
		if err := b.tableFor(f.VIP).requireDirect(f, b.egress); err != nil {
			return nil, err
		}
	}
	return b.planFrontend(f)
}

// planPool plans the pool in the table of its family; an empty pool, which has none, in both.
func (b *Backend) planPool(p model.Pool) ([]planned, error) {
	var plans []planned
	for _, t := range b.tables {
		if len(p.Endpoints) > 0 && t.layout.v4 != p.Endpoints[0].Address.Is4() {
			plans = append(plans, one(t, t.state.planPoolGone(p.ID))...)
			continue
		}
		plan, err := t.state.planPool(p)
		if err != nil {
			return nil, err
		}
		plans = append(plans, planned{plan, t})
	}
	return plans, nil
}

func (b *Backend) planPoolGone(id model.PoolID) []planned {
	var plans []planned
	for _, t := range b.tables {
		plans = append(plans, one(t, t.state.planPoolGone(id))...)
	}
	return plans
}

func (b *Backend) planFrontend(f model.Frontend) ([]planned, error) {
	t := b.tableFor(f.VIP)
	plan, err := t.state.planFrontend(f)
	return one(t, plan), err
}

// Stats reads the counters of frontends and endpoints (new connections) and of refusals.
func (b *Backend) Stats(context.Context) (dataplane.Stats, error) {
	stats := dataplane.Stats{Frontends: map[model.FrontendKey]dataplane.Counter{}, Endpoints: map[dataplane.EndpointKey]dataplane.Counter{}, Drops: map[string]uint64{}}
	c, err := elements.Connect()
	if err != nil {
		return stats, err
	}
	for _, t := range b.tables {
		if err := t.addStats(c, &stats); err != nil {
			return stats, fmt.Errorf("read counters: %w", err)
		}
	}
	return stats, nil
}

func (t *table) addStats(c *nft.Conn, stats *dataplane.Stats) error {
	ports, err := c.GetSetElements(t.sets[mapPorts])
	if err != nil {
		return err
	}
	for _, e := range ports {
		if key, err := decodeKey(e.Key); err == nil && e.Counter != nil {
			stats.Frontends[key] = dataplane.Counter{Connections: e.Counter.Packets}
		}
	}
	if err := t.addOpen(stats.Frontends); err != nil {
		return err
	}
	endpoints, err := c.GetSetElements(t.sets[mapEndpoints])
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		number, id, _ := strings.Cut(e.Comment, " ")
		var pool uint32
		if _, err := fmt.Sscan(number, &pool); err == nil && e.Counter != nil {
			stats.Endpoints[dataplane.EndpointKey{Pool: t.state.poolOf[pool], Endpoint: id}] = dataplane.Counter{Connections: e.Counter.Packets}
		}
	}
	objects, err := c.GetNamedObjects(t.nft)
	if err != nil {
		return err
	}
	for _, o := range objects {
		named, ok := o.(*nft.NamedObj)
		if !ok {
			continue
		}
		if counter, ok := named.Obj.(*expr.Counter); ok {
			stats.Drops[strings.ReplaceAll(named.Name, "_", "-")] += counter.Packets
		}
	}
	return nil
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
	return dataplane.WatchBy(ctx, endsInterval, func(now time.Time) {
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

// removeTables has the kernel come to the tables no more before it removes them: while it removes a table its maps are empty
// before its rules are gone, which would refuse what another backend already serves.
func (b *Backend) removeTables(c *nft.Conn) error {
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	all := []*nft.Table{b.egress.nft}
	for _, t := range b.tables {
		all = append(all, t.nft)
	}
	var present []*nft.Table
	for _, t := range all {
		if found, _, err := find(c, t); err != nil {
			return err
		} else if found {
			present = append(present, t)
		}
	}
	for _, chain := range chains {
		ours := slices.ContainsFunc(present, func(t *nft.Table) bool { return t.Name == chain.Table.Name && t.Family == chain.Table.Family })
		if ours && chain.Hooknum != nil {
			c.DelChain(chain)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables chains: %w", err)
	}
	for _, t := range present {
		c.DelTable(t)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables tables: %w", err)
	}
	return nil
}

// Close leaves everything in place, or with purge removes the tables. Established connections go on after that while the host
// has NAT rules, such as those of a backend that has taken over; all other flows are forgotten, so that it decides on them.
func (b *Backend) Close(_ context.Context, purge bool) error {
	if !purge {
		return nil
	}
	b.busy.Lock()
	defer b.busy.Unlock()
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	if err := b.removeTables(c); err != nil {
		return err
	}
	var errs []error
	for _, t := range b.tables {
		errs = append(errs, t.forget())
	}
	b.tables = nil
	return errors.Join(errs...)
}
