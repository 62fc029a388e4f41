package dataplane

import (
	"context"
	"errors"
	"fmt"

	"kubelb.k8c.io/core/model"
)

// Checked puts a backend behind the checks that are the same for all backends, so that none has them by itself. The backend gets a change after
// Configure only, and only from the generation that it is at. A record that breaks the rules of its fields, or needs a feature that the backend does
// not declare, is refused and does not reach it. The generation is kept here: what the backend returns as one is not looked at.
func Checked(backend Dataplane) Dataplane { return &checked{Dataplane: backend} }

type checked struct {
	Dataplane
	configured bool
	generation Generation
}

// Configure configures the backend.
func (c *checked) Configure(ctx context.Context, config Config) error {
	err := c.Dataplane.Configure(ctx, config)
	c.configured = err == nil
	return err
}

// Applied adds the generation.
func (c *checked) Applied(ctx context.Context) (Applied, error) {
	applied, err := c.Dataplane.Applied(ctx)
	applied.Generation = c.generation
	return applied, err
}

// Apply has the backend carry out what of the change it can. After an error nobody knows what the dataplane holds, so no change goes on from there
// before the host has asked.
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
	change, refused := description.takeable(change)
	result, err := c.Dataplane.Apply(ctx, change)
	if err != nil {
		c.generation = Generation{}
		return result, err
	}
	c.generation = change.Next
	return Result{Generation: change.Next, Operations: result.Operations, Failed: append(refused, result.Failed...)}, nil
}

// Render refuses a snapshot that the backend cannot hold.
func (c *checked) Render(ctx context.Context, snapshot model.Snapshot) (string, error) {
	description, err := c.Describe(ctx)
	if err != nil {
		return "", err
	}
	errs := []error{snapshot.Validate()}
	for _, f := range snapshot.Frontends {
		if err := description.supports(f); err != nil {
			errs = append(errs, fmt.Errorf("frontend %s: %w", f.FrontendKey, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return c.Dataplane.Render(ctx, snapshot)
}

// Close ends the backend's work.
func (c *checked) Close(ctx context.Context, purge bool) error {
	c.configured = false
	return c.Dataplane.Close(ctx, purge)
}

// takeable is the change without the records that a backend of this description cannot take, which are returned with the reasons.
func (d Description) takeable(c Change) (Change, []RecordError) {
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

// CheckFrontend says why a backend of this description cannot take the frontend, whatever else it holds; nil if it can.
func (d Description) CheckFrontend(f model.Frontend) error {
	if err := f.Validate(); err != nil {
		return err
	}
	return d.supports(f)
}

func (d Description) supports(f model.Frontend) error {
	if lacking, lacks := d.Lacks(f); lacks {
		return fmt.Errorf("the %s backend does not support %s", d.Name, lacking)
	}
	return nil
}

// MissingPool is the error of a frontend whose pool the dataplane does not hold.
func MissingPool(id model.PoolID) error {
	return fmt.Errorf("pool %s does not exist in this dataplane", id)
}
