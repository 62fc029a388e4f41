// Package drill makes gateways fail under load, in all the ways in which gateways fail, and measures what clients notice.
package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/tools/cluster"
)

// Options are the options of a drill.
type Options struct {
	Kubernetes, Products, Backend string
	// Forwarding is the forwarding mode of the LoadBalancers. Empty means the manager's default.
	Forwarding string
	// Announce is how gateways announce addresses: Layer2 or BGP.
	Announce string
	// BIRD is the directory with BIRD, the router for BGP.
	BIRD string
	// Restarts restarts managers while routers keep their routes by graceful restart, instead of making gateways fail.
	Restarts bool
	// Rounds is how often each failure is caused. Failures are the names of failures to cause; empty means all.
	Rounds   int
	Failures []string
	Progress io.Writer
}

// Values of Announce.
const (
	Layer2 = "layer2"
	BGP    = "bgp"
)

// Lease is the gateways' --gateway-lease.
const Lease = time.Second

// failure is a way in which a gateway fails, and its repair.
type failure struct {
	name   string
	cause  func(context.Context, *fleet, *gateway) error
	repair func(context.Context, *fleet, *gateway) error
}

func failures() []failure {
	start := func(_ context.Context, f *fleet, g *gateway) error { return g.start(f) }
	return []failure{
		{name: "kill -9", cause: func(_ context.Context, _ *fleet, g *gateway) error {
			g.process.Kill()
			return nil
		}, repair: start},
		{name: linkDown, cause: func(_ context.Context, f *fleet, g *gateway) error {
			return f.lab.SetClientsLink(g.name, false)
		}, repair: func(_ context.Context, f *fleet, g *gateway) error {
			// A process remembers links that flap, which would make each round longer than the one before.
			g.process.Stop()
			return errors.Join(f.lab.SetClientsLink(g.name, true), g.start(f))
		}},
		{name: "frozen (SIGSTOP)", cause: func(_ context.Context, _ *fleet, g *gateway) error {
			return g.process.Freeze()
		}, repair: func(ctx context.Context, f *fleet, g *gateway) error {
			if err := g.process.Thaw(); err != nil {
				return err
			}
			// What the gateway does after it continues is tested, too.
			if err := pause(ctx, 2*Lease); err != nil {
				return err
			}
			g.process.Stop()
			return g.start(f)
		}},
		{name: "cut off from the hub", cause: func(ctx context.Context, f *fleet, g *gateway) error {
			return g.cutOff(ctx, f)
		}, repair: func(ctx context.Context, f *fleet, g *gateway) error {
			if err := g.reconnect(ctx, f); err != nil {
				return err
			}
			if err := pause(ctx, 2*Lease); err != nil {
				return err
			}
			g.process.Stop()
			return g.start(f)
		}},
		{name: "told to end (SIGTERM)", cause: func(_ context.Context, _ *fleet, g *gateway) error {
			g.process.Stop()
			return nil
		}, repair: start},
		{name: "drained (kubelb drain)", cause: func(ctx context.Context, f *fleet, g *gateway) error { return f.drain(ctx, g, true) },
			repair: func(ctx context.Context, f *fleet, g *gateway) error { return f.drain(ctx, g, false) }},
		{name: "not chosen by the pool any more", cause: func(ctx context.Context, f *fleet, g *gateway) error {
			return f.choose(ctx, &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: nameLabel, Operator: metav1.LabelSelectorOpNotIn, Values: []string{g.name}}}})
		}, repair: func(ctx context.Context, f *fleet, _ *gateway) error { return f.choose(ctx, nil) }},
	}
}

// linkDown is the only failure after which the gateway gets no redirected packets, so that its connections are lost.
const linkDown = "link down"

// Result is what clients noticed of a failure.
type Result struct {
	Failure string `json:"failure"`
	Round   int    `json:"round"`
	// Requests are new connections with one request each, since the failure. Failed of them got no answer within the client's timeout, and
	// Slow of them took more than a second.
	Requests, Failed, Slow int
	// Gap is, with layer 2, the longest time in which no new connection to an address of the gateway was answered. With BGP, each gateway
	// has a share of the flows to every address, and Gap is how long packets of some new connections were lost.
	Gap time.Duration
	// Kept and Lost count the connections from before the failure: to addresses of the gateway, or, with BGP, to all addresses.
	Kept, Lost int
	// LostByOthers are lost connections to addresses of other gateways.
	LostByOthers int `json:"Strangers"`
	// DoubleAnswer is the longest time in which two gateways answered for one address.
	DoubleAnswer time.Duration `json:"Twice"`
}

// Broken returns the promises that the result breaks. How long clients wait is no promise, because it depends on the machine. On a busy
// machine, one connection of many may end as well.
func (o Options) Broken(r Result) (promises []string) {
	if r.DoubleAnswer > Lease {
		promises = append(promises, fmt.Sprintf("two gateways answered for one address for %s, longer than a lease", r.DoubleAnswer))
	}
	if r.LostByOthers > 0 {
		promises = append(promises, fmt.Sprintf("%d connections to addresses of other gateways were lost", r.LostByOthers))
	}
	if r.Failure != linkDown && r.Lost > r.Kept {
		promises = append(promises, fmt.Sprintf("%d connections were lost and only %d kept, although the gateway's host continued to run", r.Lost, r.Kept))
	}
	return promises
}

// restarts returns failures that a router with graceful restart hides, because the dataplane works without the manager.
func restarts() []failure {
	wait := func(ctx context.Context, _ *fleet, _ *gateway) error { return pause(ctx, time.Second) }
	return []failure{
		{name: "killed (kill -9) and started again", cause: func(ctx context.Context, f *fleet, g *gateway) error {
			g.process.Kill()
			return errors.Join(pause(ctx, time.Second), g.start(f))
		}, repair: wait},
		{name: "replaced (SIGTERM, --bgp-stay-on-exit)", cause: func(_ context.Context, f *fleet, g *gateway) error {
			g.process.Stop()
			return g.start(f)
		}, repair: wait},
	}
}

func (o Options) failures() []failure {
	if o.Restarts {
		return restarts()
	}
	return failures()
}

// Names returns the names of all failures for the options.
func (o Options) Names() (names []string) {
	for _, f := range o.failures() {
		names = append(names, f.name)
	}
	return names
}

// Run causes the failures, and calls done with each result.
func Run(ctx context.Context, o Options, done func(Result) error) (err error) {
	f, err := newFleet(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	for round := range o.Rounds {
		for i, failure := range o.failures() {
			if len(o.Failures) > 0 && !slices.Contains(o.Failures, failure.name) {
				continue
			}
			target := f.gateways[(round+i)%len(f.gateways)]
			r, err := f.measure(ctx, failure, target)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", failure.name, round+1, errors.Join(err, f.logs()))
			}
			r.Round = round + 1
			if err := done(r); err != nil {
				return errors.Join(err, f.logs())
			}
		}
	}
	return nil
}

// settleTime is the time until clients have learned where addresses are. They ignore an announcement within a second after another one
// (locktime, arp(7)), and gateways send the last announcement 1.5 seconds after an address has moved.
const settleTime = 2500 * time.Millisecond

// The times for which the load runs before and after a failure.
const (
	before = time.Second
	after  = 5 * time.Second
)

// measure makes a gateway fail once, and measures what clients notice.
func (f *fleet) measure(ctx context.Context, what failure, target *gateway) (r Result, err error) {
	observer, load, err := f.begin(ctx)
	if err != nil {
		return r, err
	}
	err = pause(ctx, before)
	at := time.Now()
	if err == nil {
		err = what.cause(ctx, f, target)
	}
	if err == nil {
		err = pause(ctx, after)
	}
	if !f.bgp {
		r = load.stop(at, func(a netip.Addr) bool { return election.Winner(a, f.names(), nil) == target.name })
	} else {
		r = load.stop(at, func(netip.Addr) bool { return true })
		r.Gap = load.longestLoss(at)
	}
	err = errors.Join(err, what.repair(ctx, f, target), f.settle(ctx), observer.stop())
	r.Failure, r.DoubleAnswer = what.name, observer.doubleAnswer()
	return r, err
}

// begin waits until the fleet has settled, and then starts an observer and a load.
func (f *fleet) begin(ctx context.Context) (*observer, *load, error) {
	if err := f.settle(ctx); err != nil {
		return nil, nil, err
	}
	if err := pause(ctx, settleTime); err != nil {
		return nil, nil, err
	}
	w, err := f.observe()
	if err != nil {
		return nil, nil, err
	}
	l, err := f.startLoad()
	if err != nil {
		return nil, nil, errors.Join(err, w.stop())
	}
	return w, l, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// gateway is a gateway of the fleet.
type gateway struct {
	name    string
	host    *netlab.Namespace
	process *cluster.Process
	// address is the gateway's address on the clients' segment.
	address string
}
