package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Checked wraps a dataplane with the checks that are the same for all dataplanes. The dataplane gets a change only after Configure, and only if
// the change is based on its generation. Upserts without effect are removed. A record with invalid fields, or that needs a feature that the dataplane does not declare, is refused
// and not passed on. Checked keeps the generation, and ignores a generation that the dataplane returns.
func Checked(backend Dataplane) Dataplane { return &checked{Dataplane: backend} }

type checked struct {
	Dataplane
	configured bool
	// known is set once the dataplane has been configured, also after Close.
	known      bool
	generation Generation
}

// Configure configures the dataplane.
func (c *checked) Configure(ctx context.Context, config Config) error {
	err := c.Dataplane.Configure(ctx, config)
	c.configured = err == nil
	c.known = c.known || c.configured
	return err
}

// Applied adds the generation.
func (c *checked) Applied(ctx context.Context) (Applied, error) {
	applied, err := c.Dataplane.Applied(ctx)
	applied.Generation = c.generation
	return applied, err
}

// Apply passes on the records that the dataplane supports. After an error the state of the dataplane is unknown. The generation is then zero, so that the
// manager has to call Applied before the next change.
func (c *checked) Apply(ctx context.Context, change Change) (Result, error) {
	if !c.configured {
		return Result{}, errors.New("apply before configure")
	}
	if err := change.RequireBase(c.generation); err != nil {
		return Result{}, err
	}
	description, err := c.Describe(ctx)
	if err != nil {
		return Result{}, err
	}
	change, refused := description.supported(change.withoutVoidUpserts())
	result, err := c.Dataplane.Apply(ctx, change)
	if err != nil {
		c.generation = Generation{}
		return result, err
	}
	c.generation = change.Next
	return Result{Generation: change.Next, Operations: result.Operations, Failed: append(refused, result.Failed...)}, nil
}

// Render refuses a snapshot that the dataplane does not support.
func (c *checked) Render(ctx context.Context, snapshot model.Snapshot) (string, error) {
	description, err := c.Describe(ctx)
	if err != nil {
		return "", err
	}
	errs := []error{snapshot.Validate()}
	for _, f := range snapshot.Frontends {
		if err := description.checkFeatures(f); err != nil {
			errs = append(errs, fmt.Errorf("frontend %s: %w", f.FrontendKey, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return c.Dataplane.Render(ctx, snapshot)
}

// Close ends the plugin's work. Without a configuration it is unknown what a purge would have to remove, so that it is an error.
func (c *checked) Close(ctx context.Context, purge bool) error {
	if purge && !c.known {
		return errors.New("purge before configure")
	}
	c.configured = false
	return c.Dataplane.Close(ctx, purge)
}

// withoutVoidUpserts returns the change without upserts that a later upsert or a delete of the same key makes void.
func (c Change) withoutVoidUpserts() Change {
	c.UpsertPools = lastOfEach(c.UpsertPools, c.DeletePools, func(p model.Pool) model.PoolID { return p.ID })
	c.UpsertFrontends = lastOfEach(c.UpsertFrontends, c.DeleteFrontends, func(f model.Frontend) model.FrontendKey { return f.FrontendKey })
	return c
}

// lastOfEach returns the last record of each key, without those whose keys are deleted.
func lastOfEach[Record any, Key comparable](records []Record, deleted []Key, keyOf func(Record) Key) []Record {
	void := map[Key]bool{}
	for _, key := range deleted {
		void[key] = true
	}
	var kept []Record
	for _, record := range slices.Backward(records) {
		if key := keyOf(record); !void[key] {
			kept, void[key] = append(kept, record), true
		}
	}
	slices.Reverse(kept)
	return kept
}

// supported returns the change without the records that the dataplane does not support, and errors for these.
func (d Description) supported(c Change) (Change, []RecordError) {
	var refused []RecordError
	var pools []model.Pool
	for _, p := range c.UpsertPools {
		if err := p.Validate(); err != nil {
			refused = append(refused, RecordError{Pool: p.ID, Message: err.Error()})
			continue
		}
		pools = append(pools, p)
	}
	var frontends []model.Frontend
	for _, f := range c.UpsertFrontends {
		if err := d.CheckFrontend(f); err != nil {
			refused = append(refused, RecordError{Frontend: f.FrontendKey, Message: err.Error()})
			continue
		}
		frontends = append(frontends, f)
	}
	c.UpsertPools, c.UpsertFrontends = pools, frontends
	return c, refused
}

// CheckFrontend returns an error if the frontend is invalid, or if the dataplane lacks a feature that it needs.
func (d Description) CheckFrontend(f model.Frontend) error {
	if err := f.Validate(); err != nil {
		return err
	}
	return d.checkFeatures(f)
}

func (d Description) checkFeatures(f model.Frontend) error {
	if lacking, lacks := d.Lacks(f); lacks {
		return fmt.Errorf("the %s backend does not support %s", d.Name, lacking)
	}
	return nil
}

// MissingPool returns the error for a frontend whose pool the dataplane does not hold.
func MissingPool(id model.PoolID) error {
	return fmt.Errorf("pool %s does not exist in this dataplane", id)
}

// OtherFamily returns the error for a frontend whose pool has endpoints of the other family.
func OtherFamily(id model.PoolID) error {
	return fmt.Errorf("pool %s is of the other family", id)
}
