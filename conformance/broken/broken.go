// Package broken breaks a good backend in many ways, one at a time, to test the conformance suite: each case has to fail with
// a broken backend.
package broken

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// Mutation is one way to break a backend.
type Mutation struct {
	// Name is short, with hyphens.
	Name string
	// Breaks is the name of the backend to break, if the usual one lacks the feature.
	Breaks string
	// CaughtBy are the cases that must fail. The mutation is made for the first of them.
	CaughtBy []string

	// host changes a gateway's host once, before the backend starts.
	host func() error
	// change alters the change that the backend gets. The broken backend reports the digests of the original records.
	change func(*memory, *dataplane.Change)
	// result alters the result of Apply.
	result func(*dataplane.Result)
	// stats alters the result of Stats.
	stats func(*dataplane.Stats)
	// watched alters a fault that Watch reports. It returns false for a fault that is not reported.
	watched func(*dataplane.Fault) bool
	// render alters the text of a snapshot.
	render func(text string, s model.Snapshot) string
	// rendered runs in the gateway's host after each Render.
	rendered func() error
	// applied runs in the gateway's host after each Apply.
	applied func(*memory) error
	// purging runs in the gateway's host before a purge, purged after it.
	purging, purged func() error
	// leaves runs in the gateway's host after a purge, with the state directory, and leaves something behind.
	leaves func(stateDir string) error
	// configure alters the configuration that the backend gets.
	configure func(*dataplane.Config)
	// preflight runs in the gateway's host before Preflight, and alters the configuration that Preflight gets. checks alters its result.
	preflight func(*dataplane.Config) error
	checks    func(*[]dataplane.Check)
	// describe alters the result of Describe.
	describe func(*dataplane.Description)
	// anyBase makes Apply accept every base.
	anyBase bool
	// emptyAtStart deletes the records of a former process at the start.
	emptyAtStart bool
	// rewrites makes each Apply delete all records and add them again.
	rewrites bool
	// noPurge makes Close purge nothing. purgesOwn makes it purge nothing unless this process has applied a change.
	noPurge, purgesOwn bool
	// purgesUnconfigured makes Close succeed before Configure.
	purgesUnconfigured bool
	// believesCut makes an interrupted change count as done.
	believesCut bool
	// before returns what is applied before a change, followed by the pause. It gets the records from before the change.
	before func(records, dataplane.Change) model.Delta
	pause  time.Duration
	// after returns what is applied after a change, of which some records were refused.
	after func(records, []dataplane.RecordError) model.Delta
	// refuse returns an error of Apply itself. It gets the records from before the change.
	refuse func(records, dataplane.Change) error
	// claimsRefused makes Applied report a refused record as held, forgetsRefused makes it report nothing of the record.
	claimsRefused, forgetsRefused bool
	// claimsHalf makes Applied leave out frontends with an odd port.
	claimsHalf bool
}

// remembers reports whether the broken backend keeps the records of its changes, and reports their digests as held.
func (m Mutation) remembers() bool {
	return m.change != nil || m.believesCut || m.before != nil || m.after != nil || m.refuse != nil || m.claimsRefused || m.forgetsRefused
}

// records are records of the manager, and the digests that a broken backend reports as held.
type records struct {
	claimed   model.Digests
	pools     map[model.PoolID]model.Pool
	frontends map[model.FrontendKey]model.Frontend
}

func newRecords() records {
	return records{model.NewDigests(), map[model.PoolID]model.Pool{}, map[model.FrontendKey]model.Frontend{}}
}

func (r records) clone() records {
	return records{model.Digests{Pools: maps.Clone(r.claimed.Pools), Frontends: maps.Clone(r.claimed.Frontends)}, maps.Clone(r.pools), maps.Clone(r.frontends)}
}

// memory has the records that a broken backend got on one gateway. It survives the process, as tables in the kernel do.
type memory struct {
	records
	node       string
	generation dataplane.Generation
	// held and served are for mutations, which store earlier records there.
	held   map[model.PoolID]model.Pool
	served map[model.FrontendKey]model.Frontend
	// left are the endpoints that the last change removed from a pool.
	left []netip.Addr
}

// Backend breaks another backend.
type Backend struct {
	Good     cases.Backend
	Mutation Mutation

	mu      sync.Mutex
	spoiled map[string]bool
	memory  map[string]*memory
	errs    []error
}

// Err returns the errors of the mutation itself. A run that fails because of them has not caught the mutation.
func (b *Backend) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.errs...)
}

func (b *Backend) note(err error) error {
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.errs = append(b.errs, err)
	}
	return err
}

// New returns a backend that is broken.
func New(good cases.Backend, m Mutation) *Backend {
	return &Backend{Good: good, Mutation: m, spoiled: map[string]bool{}, memory: map[string]*memory{}}
}

// Start runs the good backend behind the mutation.
func (b *Backend) Start(ctx context.Context, gateway *netlab.Namespace, log io.Writer) (cases.Process, error) {
	b.mu.Lock()
	spoil := b.Mutation.host != nil && !b.spoiled[gateway.Name]
	b.spoiled[gateway.Name] = true
	b.mu.Unlock()
	if spoil {
		if err := b.note(gateway.Do(b.Mutation.host)); err != nil {
			return nil, fmt.Errorf("change host %s: %w", gateway.Name, err)
		}
	}
	good, err := b.Good.Start(ctx, gateway, log)
	if err != nil {
		return nil, err
	}
	return &process{Process: good, gateway: gateway, backend: b, mutation: b.Mutation}, nil
}

// memoryOf returns the memory of a gateway.
func (b *Backend) memoryOf(gateway string) *memory {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.memory[gateway]
	if m == nil {
		m = &memory{node: gateway, records: newRecords(), held: map[model.PoolID]model.Pool{}, served: map[model.FrontendKey]model.Frontend{}}
		b.memory[gateway] = m
	}
	return m
}

type process struct {
	cases.Process
	gateway  *netlab.Namespace
	backend  *Backend
	mutation Mutation
	memory   *memory
	stateDir string
	applied  bool
}

func (p *process) Describe(ctx context.Context) (dataplane.Description, error) {
	d, err := p.Process.Describe(ctx)
	if p.mutation.describe != nil {
		p.mutation.describe(&d)
	}
	return d, err
}

func (p *process) Preflight(ctx context.Context, config dataplane.Config) ([]dataplane.Check, error) {
	if p.mutation.preflight != nil {
		if err := p.gateway.Do(func() error { return p.mutation.preflight(&config) }); err != nil {
			return nil, err
		}
	}
	checks, err := p.Process.Preflight(ctx, config)
	if p.mutation.checks != nil {
		p.mutation.checks(&checks)
	}
	return checks, err
}

func (p *process) Configure(ctx context.Context, config dataplane.Config) error {
	if p.mutation.configure != nil {
		p.mutation.configure(&config)
	}
	if err := p.Process.Configure(ctx, config); err != nil {
		return err
	}
	p.memory, p.stateDir = p.backend.memoryOf(p.gateway.Name), config.StateDir
	p.memory.generation = dataplane.Generation{}
	if p.mutation.emptyAtStart {
		return p.wipe(ctx)
	}
	return nil
}

// wipe deletes all records by Apply.
func (p *process) wipe(ctx context.Context) error {
	held, err := p.Process.Applied(ctx)
	if err != nil {
		return err
	}
	_, err = p.Process.Apply(ctx, dataplane.Change{Base: held.Generation, Next: held.Generation, Delta: model.Difference(held.Digests, model.Snapshot{})})
	return err
}

func (p *process) Applied(ctx context.Context) (dataplane.Applied, error) {
	if p.mutation.claimsHalf {
		return p.claimed(ctx)
	}
	if !p.mutation.remembers() {
		return p.Process.Applied(ctx)
	}
	return dataplane.Applied{Generation: p.memory.generation, Digests: p.memory.clone().claimed}, nil
}

// claimed returns what the backend holds, without frontends with an odd port.
func (p *process) claimed(ctx context.Context) (dataplane.Applied, error) {
	held, err := p.Process.Applied(ctx)
	maps.DeleteFunc(held.Frontends, func(key model.FrontendKey, _ model.Digest) bool { return key.Port%2 == 1 })
	return held, err
}

func (p *process) Apply(ctx context.Context, change dataplane.Change) (dataplane.Result, error) {
	p.applied = true
	if !p.mutation.remembers() {
		return p.applyToGood(ctx, change)
	}
	m := p.memory
	if change.Base != m.generation {
		return dataplane.Result{}, dataplane.ErrResync
	}
	former := m.clone()
	if p.mutation.refuse != nil {
		if err := p.mutation.refuse(former, change); err != nil {
			return dataplane.Result{}, err
		}
	}
	m.claim(change)
	if p.mutation.change != nil {
		change.UpsertPools = clonePools(change.UpsertPools)
		change.UpsertFrontends = slices.Clone(change.UpsertFrontends)
		p.mutation.change(m, &change)
	}
	if p.mutation.before != nil {
		if err := p.extra(ctx, p.mutation.before(former, change)); err != nil {
			return dataplane.Result{}, err
		}
		time.Sleep(p.mutation.pause)
	}
	held, err := p.Process.Applied(ctx)
	if err == nil {
		change.Base = held.Generation
	}
	result, err := p.applyToGood(ctx, change)
	m.refuse(former, result.Failed, p.mutation)
	if err == nil && p.mutation.after != nil {
		err = p.extra(ctx, p.mutation.after(former, result.Failed))
	}
	if p.mutation.believesCut {
		return dataplane.Result{Generation: change.Next}, nil
	}
	return result, err
}

// extra applies a change of the mutation itself.
func (p *process) extra(ctx context.Context, d model.Delta) error {
	held, err := p.Process.Applied(ctx)
	if err != nil {
		return p.backend.note(err)
	}
	_, err = p.Process.Apply(ctx, dataplane.Change{Base: held.Generation, Next: held.Generation, Delta: d})
	return p.backend.note(err)
}

// applyToGood passes the change to the good backend.
func (p *process) applyToGood(ctx context.Context, change dataplane.Change) (dataplane.Result, error) {
	if p.mutation.anyBase {
		held, err := p.Process.Applied(ctx)
		if err != nil {
			return dataplane.Result{}, err
		}
		change.Base = held.Generation
	}
	if p.mutation.rewrites {
		if err := p.backend.note(p.rewrite(ctx, &change)); err != nil {
			return dataplane.Result{}, err
		}
	}
	result, err := p.Process.Apply(ctx, change)
	if err != nil {
		return result, err
	}
	if p.mutation.result != nil {
		p.mutation.result(&result)
	}
	if p.mutation.applied != nil {
		err = p.backend.note(p.gateway.Do(func() error { return p.mutation.applied(p.memory) }))
	}
	return result, err
}

// rewrite deletes all records, and extends the change so that it adds them again.
func (p *process) rewrite(ctx context.Context, change *dataplane.Change) error {
	m := p.memory
	held, err := p.Process.Applied(ctx)
	if err != nil {
		return err
	}
	m.claim(*change)
	_, err = p.Process.Apply(ctx, dataplane.Change{Base: change.Base, Next: held.Generation, Delta: model.Difference(held.Digests, model.Snapshot{})})
	change.Base = held.Generation
	change.UpsertPools, change.UpsertFrontends = slices.Collect(maps.Values(m.pools)), slices.Collect(maps.Values(m.frontends))
	return err
}

func (p *process) Stats(ctx context.Context) (dataplane.Stats, error) {
	s, err := p.Process.Stats(ctx)
	if p.mutation.stats != nil {
		p.mutation.stats(&s)
	}
	return s, err
}

func (p *process) Watch(ctx context.Context, report func(dataplane.Fault)) error {
	return p.Process.Watch(ctx, func(f dataplane.Fault) {
		if p.mutation.watched == nil || p.mutation.watched(&f) {
			report(f)
		}
	})
}

func (p *process) Render(ctx context.Context, s model.Snapshot) (string, error) {
	text, err := p.Process.Render(ctx, s)
	if err == nil && p.mutation.render != nil {
		text = p.mutation.render(text, s)
	}
	if err == nil && p.mutation.rendered != nil {
		err = p.backend.note(p.gateway.Do(p.mutation.rendered))
	}
	return text, err
}

func (p *process) Close(ctx context.Context, purge bool) error {
	m := p.mutation
	if p.memory == nil && m.purgesUnconfigured {
		return nil
	}
	if p.memory == nil || !purge {
		return p.Process.Close(ctx, purge)
	}
	if m.purging != nil {
		if err := p.backend.note(p.gateway.Do(m.purging)); err != nil {
			return err
		}
	}
	err := p.Process.Close(ctx, !m.noPurge && (p.applied || !m.purgesOwn))
	if err == nil && m.purged != nil {
		err = p.backend.note(p.gateway.Do(m.purged))
	}
	if err == nil && m.leaves != nil {
		err = p.backend.note(p.gateway.Do(func() error { return m.leaves(p.stateDir) }))
	}
	return err
}

// claim stores the records of a change.
func (m *memory) claim(c dataplane.Change) {
	m.generation = c.Next
	for _, p := range c.UpsertPools {
		m.claimed.Pools[p.ID], m.pools[p.ID] = p.Digest(), p
	}
	for _, f := range c.UpsertFrontends {
		m.claimed.Frontends[f.FrontendKey], m.frontends[f.FrontendKey] = f.Digest(), f
	}
	for _, key := range c.DeleteFrontends {
		delete(m.claimed.Frontends, key)
		delete(m.frontends, key)
	}
	for _, id := range c.DeletePools {
		delete(m.claimed.Pools, id)
		delete(m.pools, id)
	}
}

// refuse restores what the manager knows of refused records, unless the mutation is about that.
func (m *memory) refuse(former records, failed []dataplane.RecordError, mutation Mutation) {
	for _, f := range failed {
		if !mutation.claimsRefused {
			restore(m.claimed.Pools, former.claimed.Pools, f.Pool)
			restore(m.claimed.Frontends, former.claimed.Frontends, f.Frontend)
		}
		if mutation.forgetsRefused {
			delete(m.claimed.Pools, f.Pool)
			delete(m.claimed.Frontends, f.Frontend)
		}
		restore(m.pools, former.pools, f.Pool)
		restore(m.frontends, former.frontends, f.Frontend)
	}
}

func restore[K comparable, V any](now, former map[K]V, key K) {
	if value, had := former[key]; had {
		now[key] = value
	} else {
		delete(now, key)
	}
}

func clonePools(pools []model.Pool) []model.Pool {
	out := slices.Clone(pools)
	for i := range out {
		out[i].Endpoints = slices.Clone(out[i].Endpoints)
	}
	return out
}

// ownState gives each process its own state directory.
func ownState(c *dataplane.Config) {
	if dir, err := os.MkdirTemp(c.StateDir, "own"); err == nil {
		c.StateDir = dir
	}
}
