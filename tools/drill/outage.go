package drill

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// OutageResult is what clients noticed during an outage: the hub's API was frozen, a node died, and gateways were frozen from time to time.
type OutageResult struct {
	Result
	// Unanswered are the addresses for which no gateway, or more than one, answered at the end.
	Unanswered []netip.Addr
	// Silence is the longest time in which no gateway answered for an address, until the new Service had its addresses. Silent is that
	// address.
	Silence time.Duration
	Silent  netip.Addr
	// SilentUntil is when that time ended, after the start of the outage.
	SilentUntil time.Duration
	// Reconciled is how long after the end of the outage a new Service had its addresses.
	Reconciled time.Duration
}

// nodeDiesAfter is when a node dies, after the start of an outage.
const nodeDiesAfter = 5 * time.Second

// During an outage, one gateway after another is frozen for freezeTime, which is longer than a lease.
const (
	freezeTime  = 1200 * time.Millisecond
	freezeEvery = 20 * time.Second
)

// Outage freezes the hub's API for this time.
func Outage(ctx context.Context, o Options, duration time.Duration) (r OutageResult, err error) {
	f, err := newFleet(ctx, o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	observer, load, err := f.begin(ctx)
	if err != nil {
		return r, err
	}
	began := time.Now()
	if err = f.lab.Hub.FreezeAPI(true); err == nil {
		err = pause(ctx, nodeDiesAfter)
	}
	if err == nil {
		err = f.tenants[0].cluster.Nodes[1].Disconnect()
	}
	if err == nil {
		err = f.freezeGateways(ctx, began.Add(duration))
	}
	r.Unanswered = observer.unclear()
	for end := time.Now(); err == nil && len(r.Unanswered) > 0 && time.Since(end) < settledLimit; r.Unanswered = observer.unclear() {
		err = pause(ctx, interval) // a single answer may come late
	}
	r.Result = load.stop(began, func(netip.Addr) bool { return true })
	err = errors.Join(err, f.lab.Hub.FreezeAPI(false))
	again := time.Now()
	if err == nil {
		err = f.oneMore(ctx)
	}
	r.Reconciled = time.Since(again)
	r.Silence, r.Silent, r.SilentUntil = observer.silence()
	r.SilentUntil -= began.Sub(observer.began)
	err = errors.Join(err, observer.stop())
	r.DoubleAnswer = observer.doubleAnswer()
	if r.Silence > settledLimit {
		err = errors.Join(err, fmt.Errorf("no gateway answered for %s for %s", r.Silent, r.Silence), f.logs())
	}
	return r, err
}

// freezeGateways freezes the gateways for a moment, one after another, until this time.
func (f *fleet) freezeGateways(ctx context.Context, until time.Time) error {
	for i := 0; time.Until(until) > freezeEvery; i++ {
		if err := pause(ctx, freezeEvery-freezeTime); err != nil {
			return err
		}
		process := f.gateways[i%len(f.gateways)].process
		err := process.Freeze()
		if err == nil {
			err = pause(ctx, freezeTime)
		}
		if err := errors.Join(err, process.Thaw()); err != nil {
			return err
		}
	}
	return pause(ctx, time.Until(until))
}

// oneMore creates a Service and waits until its addresses are announced.
func (f *fleet) oneMore(ctx context.Context) error {
	t := f.tenants[1]
	if err := t.expose(ctx, "more", f.annotations()); err != nil {
		return err
	}
	return until(ctx, "addresses for one more Service", func() error {
		addresses, err := t.addresses(ctx)
		if err == nil && len(addresses) != len(families)*(services/len(f.tenants)+1) {
			err = fmt.Errorf("%d addresses are announced", len(addresses))
		}
		return err
	})
}

// String describes the result in a line.
func (r OutageResult) String() string {
	return fmt.Sprintf("%d of %d requests failed, %d slow, %d connections kept, %d lost, two answers for %s, no answer for %s (for %s, until %s after the start), addresses without exactly one answer at the end: %v, one more Service served %s after the end of the outage",
		r.Failed, r.Requests, r.Slow, r.Kept, r.Lost, r.DoubleAnswer, r.Silence, r.Silent, r.SilentUntil.Round(interval), r.Unanswered, r.Reconciled.Round(time.Millisecond))
}
