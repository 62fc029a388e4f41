package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kubelb.k8c.io/core/model"
)

// limits are how long calls of a backend may take. A backend that takes longer is restarted, and its process ended by force if need be.
type limits struct {
	// load is longer than what the start of a plugin takes at most, after which that is ended.
	load, describe, preflight, configure, applied time.Duration
	// apply is for a change of nothing; each record, endpoint and source range gets applyEach more, up to applyMost: a first sync of many
	// Services takes minutes by right.
	apply, applyEach, applyMost time.Duration
}

func defaultLimits() limits {
	return limits{load: 70 * time.Second, describe: 10 * time.Second, preflight: preflightLimit + time.Second, configure: 2 * time.Minute, applied: 2 * time.Minute,
		apply: time.Minute, applyEach: 10 * time.Millisecond, applyMost: 15 * time.Minute}
}

// forChange is how long an Apply of the change may take.
func (l limits) forChange(d model.Delta) time.Duration {
	n := d.Len()
	for _, p := range d.UpsertPools {
		n += len(p.Endpoints)
	}
	for _, f := range d.UpsertFrontends {
		n += len(f.SourceRanges)
	}
	return min(l.apply+time.Duration(n)*l.applyEach, l.applyMost)
}

// hungPause is for how long a plugin that has not answered is left alone, at least, before it is started again: it would meet the same work.
const hungPause = 10 * time.Second

// Call is a call that a plugin has not answered yet.
type Call struct {
	Name  string
	Began time.Time
	// Limit is how long it may take.
	Limit time.Duration
}

// errHung is that of a backend that has not answered a call in time.
var errHung = errors.New("it is ended by force and started again after a pause")

// call calls a plugin. It returns when the plugin has answered, or at the limit at the latest. What else the gateway has to do is done meanwhile.
func call[T any](ctx context.Context, r *runner, name string, limit time.Duration, do func(context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type answer struct {
		result T
		err    error
	}
	answered, done := make(chan answer, 1), make(chan struct{})
	go func() {
		defer close(done)
		result, err := do(limited)
		answered <- answer{result, err}
	}()
	r.calling = &Call{Name: name, Began: time.Now(), Limit: limit}
	defer func() { r.calling = nil }()
	r.wait(limited, done)
	select {
	case a := <-answered:
		late := errors.Is(a.err, context.DeadlineExceeded) || limited.Err() != nil
		if a.err == nil || ctx.Err() != nil || !late {
			return a.result, a.err
		}
	default:
		if ctx.Err() != nil {
			return *new(T), ctx.Err()
		}
	}
	return *new(T), fmt.Errorf("the backend has not answered %s within %s: %w", name, limit, errHung)
}

// wait returns when the call is done, or may take no longer.
func (r *runner) wait(ctx context.Context, done <-chan struct{}) {
	if r.duringCall != nil {
		r.duringCall(ctx, done)
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
