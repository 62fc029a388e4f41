package drill

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// Outage is what clients noticed while nobody reached the hub's API, and one of two nodes died.
type Outage struct {
	Result
	// Unanswered are addresses that nobody, or more than one gateway, answered for in the end.
	Unanswered []netip.Addr
	// Reconciled is how long after the API was there again a new LoadBalancer had its addresses.
	Reconciled time.Duration
}

// nodeDies is how long into an outage a node dies.
const nodeDies = 5 * time.Second

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
		err = f.lab.SetLinkInside("farm2", false)
	}
	if err == nil {
		err = pause(ctx, long-nodeDies)
	}
	r.Unanswered = witness.unclear()
	r.Result = load.stop(began, func(netip.Addr) bool { return true })
	err = errors.Join(err, f.lab.Hub.FreezeAPI(false))
	again := time.Now()
	if err == nil {
		err = f.oneMore(ctx)
	}
	r.Reconciled = time.Since(again)
	err = errors.Join(err, witness.stop())
	r.Twice = witness.twice()
	return r, err
}

// oneMore makes a LoadBalancer and waits until its addresses are announced.
func (f *fleet) oneMore(ctx context.Context) error {
	lb := f.loadBalancer(tenants[0], "more")
	if err := until(ctx, "one LoadBalancer more", func() error { return client.IgnoreAlreadyExists(f.hub.Create(ctx, lb)) }); err != nil {
		return err
	}
	return until(ctx, "addresses for one LoadBalancer more", func() error {
		var is v1alpha1.LoadBalancer
		if err := f.hub.Get(ctx, client.ObjectKeyFromObject(lb), &is); err != nil {
			return err
		}
		if len(is.Status.LoadBalancer.Ingress) != len(families) {
			return fmt.Errorf("its status is %v", is.Status.Conditions)
		}
		return nil
	})
}

// String says it in a line.
func (r Outage) String() string {
	return fmt.Sprintf("%d of %d requests failed, %d slow, %d connections kept, %d lost, two answers for %s, not answered for by one gateway in the end: %v, one LoadBalancer more served %s after the API was back",
		r.Failed, r.Requests, r.Slow, r.Kept, r.Lost, r.Twice, r.Unanswered, r.Reconciled.Round(time.Millisecond))
}
