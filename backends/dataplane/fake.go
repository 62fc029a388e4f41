package dataplane

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Fake is a Dataplane in memory that moves no packets. Its zero value is ready to use.
type Fake struct {
	// Refuse, if set, returns why a record is refused, or "" if it is not.
	Refuse func(record string) string
	// Changes are all changes that were applied.
	Changes []Change
	// Checks is the result of Preflight.
	Checks []Check

	config     Config
	generation Generation
	pools      map[model.PoolID]model.Pool
	frontends  map[model.FrontendKey]model.Frontend
}

var _ Dataplane = (*Fake)(nil)

// Describe returns a dataplane with all features, and with a note of its directory once it is configured.
func (f *Fake) Describe(context.Context) (Description, error) {
	var notes []string
	if f.config.StateDir != "" {
		notes = []string{"state directory: " + f.config.StateDir}
	}
	return Description{Name: "fake", Version: "1", Notes: notes, Features: Features()}, nil
}

// Preflight returns Checks.
func (f *Fake) Preflight(context.Context, Config) ([]Check, error) { return f.Checks, nil }

// Configure stores the configuration. It refuses one without a directory.
func (f *Fake) Configure(_ context.Context, config Config) error {
	if config.StateDir == "" {
		return fmt.Errorf("configuration without a state directory")
	}
	f.config = config
	return nil
}

// Restart behaves as a new plugin process: the generation is lost, the records stay.
func (f *Fake) Restart() { f.generation = Generation{} }

// Applied returns the digests of the records.
func (f *Fake) Applied(context.Context) (Applied, error) {
	return Applied{f.generation, f.snapshot().Digests()}, nil
}

// Apply applies the change.
func (f *Fake) Apply(_ context.Context, c Change) (Result, error) {
	if err := c.RequireBase(f.generation); err != nil {
		return Result{}, err
	}
	if f.pools == nil {
		f.pools, f.frontends = map[model.PoolID]model.Pool{}, map[model.FrontendKey]model.Frontend{}
	}
	f.Changes = append(f.Changes, c)
	result := Result{Generation: c.Next, Operations: uint64(c.Len())}
	for _, p := range c.UpsertPools {
		if err := f.refusal("pool "+string(p.ID), p.Validate()); err != "" {
			result.Failed = append(result.Failed, RecordError{Pool: p.ID, Message: err})
			continue
		}
		f.pools[p.ID] = p
	}
	for _, fe := range c.UpsertFrontends {
		err := f.refusal("frontend "+fe.FrontendKey.String(), fe.Validate())
		if _, ok := f.pools[fe.Pool]; !ok && err == "" {
			err = MissingPool(fe.Pool).Error()
		}
		if err != "" {
			result.Failed = append(result.Failed, RecordError{Frontend: fe.FrontendKey, Message: err})
			continue
		}
		f.frontends[fe.FrontendKey] = fe
	}
	for _, key := range c.DeleteFrontends {
		delete(f.frontends, key)
	}
	for _, id := range c.DeletePools {
		delete(f.pools, id)
	}
	f.generation = c.Next
	return result, nil
}

func (f *Fake) refusal(record string, err error) string {
	if err != nil {
		return err.Error()
	}
	if f.Refuse != nil {
		return f.Refuse(record)
	}
	return ""
}

func (f *Fake) snapshot() model.Snapshot {
	return model.Snapshot{Pools: slices.Collect(maps.Values(f.pools)), Frontends: slices.Collect(maps.Values(f.frontends))}
}

// Dump returns the records that it holds, in the model's text form.
func (f *Fake) Dump() string { return f.snapshot().Text() }

// Render returns the snapshot's text form.
func (f *Fake) Render(_ context.Context, s model.Snapshot) (string, error) { return s.Text(), nil }

// Stats returns a zero counter for each frontend, and as many connections as there are frontends.
func (f *Fake) Stats(context.Context) (Stats, error) {
	s := Stats{Frontends: map[model.FrontendKey]Counter{}, Proxied: uint64(len(f.frontends))}
	for key := range f.frontends {
		s.Frontends[key] = Counter{}
	}
	return s, nil
}

// Watch waits for ctx to end.
func (f *Fake) Watch(ctx context.Context, _ func(Fault)) error {
	<-ctx.Done()
	return nil
}

// Close removes all records if purge is set.
func (f *Fake) Close(_ context.Context, purge bool) error {
	if purge {
		f.pools, f.frontends = nil, nil
	}
	return nil
}
