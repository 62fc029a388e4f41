package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kubelb.k8c.io/core/model"
)

// limits are the deadlines of calls. If a plugin takes longer, it is started again, and its process is killed if necessary.
type limits struct {
	// load is longer than the start of a plugin may take by itself.
	load, describe, preflight, configure, applied time.Duration
	// apply is for an empty change. Each record, endpoint and source range adds applyPerRecord, up to applyMax: the first sync of many Services may take
	// minutes.
	apply, applyPerRecord, applyMax time.Duration
}

func defaultLimits() limits {
	return limits{load: 70 * time.Second, describe: 10 * time.Second, preflight: preflightLimit + time.Second, configure: 2 * time.Minute, applied: 2 * time.Minute,
		apply: time.Minute, applyPerRecord: 10 * time.Millisecond, applyMax: 15 * time.Minute}
}

// forChange returns the deadline of an Apply.
func (l limits) forChange(d model.Delta) time.Duration {
	n := d.Len()
	for _, p := range d.UpsertPools {
		n += len(p.Endpoints)
	}
	for _, f := range d.UpsertFrontends {
		n += len(f.SourceRanges)
	}
	return min(l.apply+time.Duration(n)*l.applyPerRecord, l.applyMax)
}

// hangBackoff is the least pause before a plugin that did not answer is started again: it would get the same work.
const hangBackoff = 10 * time.Second

// Call is a call that a plugin has not answered yet.
type Call struct {
	Name  string
	Began time.Time
	// Limit is how long it may take.
	Limit time.Duration
}

// errHang says that a plugin has not answered in time.
var errHang = errors.New("its process is killed, and started again after a pause")

// call calls a plugin. It returns when the plugin has answered, or at the limit. Meanwhile the gateway does its other work.
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
	return *new(T), fmt.Errorf("the plugin has not answered %s within %s: %w", name, limit, errHang)
}

// wait returns when the call is done, or at its limit.
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
