// Package broken breaks a good backend in many ways, one at a time, to see that the suite notices: a case that no broken
// backend fails shows nothing.
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

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/model"
)

// Mutation is one way to be broken.
type Mutation struct {
	// Name is short, with hyphens.
	Name string
	// Breaks is the backend that is broken, where the usual one lacks the feature; else empty.
	Breaks string
	// CaughtBy are cases that must fail. The first one is the case that the mutation is for.
	CaughtBy []string

	// host spoils a gateway's host once, before the backend starts.
	host func() error
	// change alters what the backend is told; what it claims to hold stays what it was asked to.
	change func(*memory, *dataplane.Change)
	// result alters what the backend answers.
	result func(*dataplane.Result)
	// stats alters what the backend counts.
	stats func(*dataplane.Stats)
	// applied runs in the gateway's host after each Apply.
	applied func(*memory) error
	// purged runs in the gateway's host after a purge.
	purged func() error
	// configure alters what the backend is told of its host.
	configure func(*dataplane.Config)
	// describe alters what the backend says of itself.
	describe func(*dataplane.Description)
	// base makes any base the right one.
	anyBase bool
	// emptyAtStart purges what a former process left.
	emptyAtStart bool
	// rewrites: each Apply takes everything away and puts it back.
	rewrites bool
	// noPurge: Close leaves everything.
	noPurge bool
	// believesCut: a change that was cut off counts as done.
	believesCut bool
}

// memory is what a broken backend was asked for, by gateway. It survives the process, as a kernel's tables do.
type memory struct {
	node       string
	generation dataplane.Generation
	claimed    model.Digests
	pools      map[model.PoolID]model.Pool
	frontends  map[model.FrontendKey]model.Frontend
	// held and served are what a mutation notes of what it saw.
	held   map[model.PoolID]model.Pool
	served map[model.FrontendKey]model.Frontend
	// left are endpoints that the last change took out of a pool.
	left []netip.Addr
}

// Backend breaks another one.
type Backend struct {
	Good     cases.Backend
	Mutation Mutation

	mu      sync.Mutex
	spoiled map[string]bool
	memory  map[string]*memory
	errs    []error
}

// Err is what went wrong with the breaking itself: a run that fails over that has noticed nothing.
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
			return nil, fmt.Errorf("spoil %s: %w", gateway.Name, err)
		}
	}
	good, err := b.Good.Start(ctx, gateway, log)
	if err != nil {
		return nil, err
	}
	return &process{Process: good, gateway: gateway, backend: b, mutation: b.Mutation}, nil
}

// of returns the memory of a gateway.
func (b *Backend) of(gateway string) *memory {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.memory[gateway]
	if m == nil {
		m = &memory{node: gateway, claimed: model.NewDigests(), pools: map[model.PoolID]model.Pool{}, frontends: map[model.FrontendKey]model.Frontend{},
			held: map[model.PoolID]model.Pool{}, served: map[model.FrontendKey]model.Frontend{}}
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
}

func (p *process) Describe(ctx context.Context) (dataplane.Description, error) {
	d, err := p.Process.Describe(ctx)
	if p.mutation.describe != nil {
		p.mutation.describe(&d)
	}
	return d, err
}

func (p *process) Configure(ctx context.Context, config dataplane.Config) error {
	if p.mutation.configure != nil {
		p.mutation.configure(&config)
	}
	if err := p.Process.Configure(ctx, config); err != nil {
		return err
	}
	p.memory = p.backend.of(p.gateway.Name)
	p.memory.generation = dataplane.Generation{}
	if p.mutation.emptyAtStart {
		return p.wipe(ctx)
	}
	return nil
}

// wipe takes everything away by Apply.
func (p *process) wipe(ctx context.Context) error {
	held, err := p.Process.Applied(ctx)
	if err != nil {
		return err
	}
	_, err = p.Process.Apply(ctx, dataplane.Change{Base: held.Generation, Next: held.Generation, Delta: model.Difference(held.Digests, model.Snapshot{})})
	return err
}

func (p *process) Applied(ctx context.Context) (dataplane.Applied, error) {
	if p.mutation.change == nil && !p.mutation.believesCut {
		return p.Process.Applied(ctx)
	}
	return dataplane.Applied{Generation: p.memory.generation, Digests: model.Digests{Pools: maps.Clone(p.memory.claimed.Pools), Frontends: maps.Clone(p.memory.claimed.Frontends)}}, nil
}

func (p *process) Apply(ctx context.Context, change dataplane.Change) (dataplane.Result, error) {
	if p.mutation.change == nil && !p.mutation.believesCut {
		return p.pass(ctx, change)
	}
	m := p.memory
	if change.Base != m.generation {
		return dataplane.Result{}, dataplane.ErrResync
	}
	m.claim(change)
	if p.mutation.change != nil {
		change.UpsertPools = clonePools(change.UpsertPools)
		change.UpsertFrontends = slices.Clone(change.UpsertFrontends)
		p.mutation.change(m, &change)
	}
	held, err := p.Process.Applied(ctx)
	if err == nil {
		change.Base = held.Generation
	}
	result, err := p.pass(ctx, change)
	for _, failed := range result.Failed {
		delete(m.claimed.Pools, failed.Pool)
		delete(m.claimed.Frontends, failed.Frontend)
	}
	if p.mutation.believesCut {
		return dataplane.Result{Generation: change.Next}, nil
	}
	return result, err
}

// pass hands the change on.
func (p *process) pass(ctx context.Context, change dataplane.Change) (dataplane.Result, error) {
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

// rewrite takes everything away and makes the change put everything back.
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

func (p *process) Close(ctx context.Context, purge bool) error {
	err := p.Process.Close(ctx, purge && !p.mutation.noPurge)
	if err == nil && purge && p.mutation.purged != nil {
		err = p.backend.note(p.gateway.Do(p.mutation.purged))
	}
	return err
}

// claim notes what the backend was asked for.
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

func clonePools(pools []model.Pool) []model.Pool {
	out := slices.Clone(pools)
	for i := range out {
		out[i].Endpoints = slices.Clone(out[i].Endpoints)
	}
	return out
}

// ownState gives each process a state directory of its own.
func ownState(c *dataplane.Config) {
	if dir, err := os.MkdirTemp(c.StateDir, "own"); err == nil {
		c.StateDir = dir
	}
}
