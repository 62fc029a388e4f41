package drill

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Outage is what clients noticed while nobody reached the hub's API, a node died, and gateways stood still now and then.
type Outage struct {
	Result
	// Unanswered are addresses that nobody, or more than one gateway, answered for in the end.
	Unanswered []netip.Addr
	// Silence is the longest time in which nobody answered for an address, which is Silent, from the beginning until the Service had its
	// addresses.
	Silence time.Duration
	Silent  netip.Addr
	// SilentUntil is how long after the outage's beginning that ended.
	SilentUntil time.Duration
	// Reconciled is how long after the API was there again a new Service had its addresses.
	Reconciled time.Duration
}

// nodeDies is how long into an outage a node dies.
const nodeDies = 5 * time.Second

// One gateway after the other stands still for so long every now and then. That is longer than a lease lasts.
const (
	standsStill  = 1200 * time.Millisecond
	everySoOften = 20 * time.Second
)

// Away has the hub's API stand still for so long.
func Away(ctx context.Context, o Options, long time.Duration) (r Outage, err error) {
	f, err := newFleet(ctx, o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	witness, load, err := f.begin(ctx)
	if err != nil {
		return r, err
	}
	began := time.Now()
	if err = f.lab.Hub.FreezeAPI(true); err == nil {
		err = pause(ctx, nodeDies)
	}
	if err == nil {
		err = f.tenants[0].cluster.Nodes[1].Disconnect()
	}
	if err == nil {
		err = f.stumble(ctx, began.Add(long))
	}
	r.Unanswered = witness.unclear()
	for end := time.Now(); err == nil && len(r.Unanswered) > 0 && time.Since(end) < quietLimit; r.Unanswered = witness.unclear() {
		err = pause(ctx, turn) // a single answer may come late
	}
	r.Result = load.stop(began, func(netip.Addr) bool { return true })
	err = errors.Join(err, f.lab.Hub.FreezeAPI(false))
	again := time.Now()
	if err == nil {
		err = f.oneMore(ctx)
	}
	r.Reconciled = time.Since(again)
	r.Silence, r.Silent, r.SilentUntil = witness.silence()
	r.SilentUntil -= began.Sub(witness.began)
	err = errors.Join(err, witness.stop())
	r.Twice = witness.twice()
	if r.Silence > quietLimit {
		err = errors.Join(err, fmt.Errorf("nobody answered for %s for %s", r.Silent, r.Silence), f.logs())
	}
	return r, err
}

// stumble has the gateways stand still for a moment, one after the other, until then.
func (f *fleet) stumble(ctx context.Context, then time.Time) error {
	for i := 0; time.Until(then) > everySoOften; i++ {
		if err := pause(ctx, everySoOften-standsStill); err != nil {
			return err
		}
		process := f.gateways[i%len(f.gateways)].process
		err := process.Freeze()
		if err == nil {
			err = pause(ctx, standsStill)
		}
		if err := errors.Join(err, process.Thaw()); err != nil {
			return err
		}
	}
	return pause(ctx, time.Until(then))
}

// oneMore makes a Service and waits until its addresses are announced.
func (f *fleet) oneMore(ctx context.Context) error {
	t := f.tenants[1]
	if err := t.expose(ctx, "more", f.forwarded()); err != nil {
		return err
	}
	return until(ctx, "addresses for one Service more", func() error {
		is, err := t.addresses(ctx)
		if err == nil && len(is) != len(families)*(services/len(f.tenants)+1) {
			err = fmt.Errorf("%d addresses are announced", len(is))
		}
		return err
	})
}

// String says it in a line.
func (r Outage) String() string {
	return fmt.Sprintf("%d of %d requests failed, %d slow, %d connections kept, %d lost, two answers for %s, no answer for %s (by %s, until %s after the beginning), not answered for by one gateway in the end: %v, one Service more served %s after the API was back",
		r.Failed, r.Requests, r.Slow, r.Kept, r.Lost, r.Twice, r.Silence, r.Silent, r.SilentUntil.Round(turn), r.Unanswered, r.Reconciled.Round(time.Millisecond))
}
