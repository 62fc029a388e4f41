package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
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

// reasonSlow is that of the condition about a call that takes long.
const reasonSlow = "CallTakesLong"

const (
	// slowAfter is from when on a call of a backend is named in a condition.
	slowAfter = 10 * time.Second
	// hungPause is for how long a backend that has not answered is left alone, at least, before it is started again: it would meet the same work.
	hungPause = 10 * time.Second
	// meanwhileEvery is how often the gateway looks after itself while a backend is called.
	meanwhileEvery = 250 * time.Millisecond
)

// call is what a backend has been asked and has not answered yet.
type call struct {
	name  string
	began time.Time
	limit time.Duration
}

// errHung is that of a backend that has not answered a call in time.
var errHung = errors.New("it is ended by force and started again after a pause")

// called calls a backend. It returns when the backend has answered, or at the limit at the latest; what else the gateway has to do is done
// meanwhile.
func called[T any](ctx context.Context, h *host, name string, limit time.Duration, do func(context.Context) (T, error)) (T, error) {
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
	h.calling = &call{name: name, began: time.Now(), limit: limit}
	defer func() { h.calling = nil }()
	h.wait(limited, done)
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
func (h *host) wait(ctx context.Context, done <-chan struct{}) {
	if h.meanwhile != nil {
		h.meanwhile(ctx, done)
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// meanwhile does what cannot wait while the backend is called: it takes events, elects and says how the gateway is. What it hears of the
// model is sent to the backend later.
func (g *Gateway) meanwhile(ctx context.Context, done <-chan struct{}) {
	ticker := time.NewTicker(meanwhileEvery)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case e := <-g.events:
			e(g)
			g.behind = true
			continue
		case <-g.poke:
		case <-ticker.C:
		}
		g.noteDraining(time.Now())
		g.elect(ctx)
		g.publish()
		g.seeOff()
	}
}

// slowCondition names a call that takes long; it is there only while that is so.
func slowCondition(c *call, now time.Time) (metav1.Condition, bool) {
	if c == nil || now.Sub(c.began) < slowAfter {
		return metav1.Condition{}, false
	}
	return metav1.Condition{Type: v1alpha1.ConditionBackendBusy, Status: metav1.ConditionTrue, Reason: reasonSlow,
		// In tens of seconds: each other text would be another write.
		Message: fmt.Sprintf("the backend has worked on %s for more than %s; it may take %s, then it is started again. What the dataplane holds goes on; later changes wait",
			c.name, now.Sub(c.began).Truncate(slowAfter), c.limit)}, true
}
