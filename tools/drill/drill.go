// Package drill takes gateways away from under load, in all the ways that gateways go, and says what clients noticed of it.
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

// Options say what to drill.
type Options struct {
	Kubernetes, Products, Backend string
	// Forwarding is that of the LoadBalancers; empty for the manager's choice.
	Forwarding string
	// Announce is how gateways announce addresses: Layer2 or BGP.
	Announce string
	// BIRD is where that is unpacked, the router of BGP.
	BIRD string
	// Restarts has managers be started again while routers keep their routes by graceful restart, instead of gateways be taken away.
	Restarts bool
	// Rounds is how often each failure is brought about, Failures which of them; all without any.
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

// Failure is a way in which a gateway goes, and how it comes back.
type failure struct {
	name   string
	happen func(context.Context, *fleet, *gateway) error
	mend   func(context.Context, *fleet, *gateway) error
}

func failures() []failure {
	start := func(_ context.Context, f *fleet, g *gateway) error { return g.start(f) }
	return []failure{
		{name: "kill -9", happen: func(_ context.Context, _ *fleet, g *gateway) error {
			g.process.Kill()
			return nil
		}, mend: start},
		{name: linkDown, happen: func(_ context.Context, f *fleet, g *gateway) error {
			return f.lab.SetClientsLink(g.name, false)
		}, mend: func(_ context.Context, f *fleet, g *gateway) error {
			// What a process remembers of links that flap would make each round longer than the one before.
			g.process.Stop()
			return errors.Join(f.lab.SetClientsLink(g.name, true), g.start(f))
		}},
		{name: "frozen (SIGSTOP)", happen: func(_ context.Context, _ *fleet, g *gateway) error {
			return g.process.Freeze()
		}, mend: func(ctx context.Context, f *fleet, g *gateway) error {
			if err := g.process.Thaw(); err != nil {
				return err
			}
			// What it does when it wakes up is judged, too.
			if err := pause(ctx, 2*Lease); err != nil {
				return err
			}
			g.process.Stop()
			return g.start(f)
		}},
		{name: "cut off from the hub", happen: func(ctx context.Context, f *fleet, g *gateway) error {
			return g.cutOff(ctx, f)
		}, mend: func(ctx context.Context, f *fleet, g *gateway) error {
			if err := g.reconnect(ctx, f); err != nil {
				return err
			}
			if err := pause(ctx, 2*Lease); err != nil {
				return err
			}
			g.process.Stop()
			return g.start(f)
		}},
		{name: "told to end (SIGTERM)", happen: func(_ context.Context, _ *fleet, g *gateway) error {
			g.process.Stop()
			return nil
		}, mend: start},
		{name: "drained (kubelb drain)", happen: func(ctx context.Context, f *fleet, g *gateway) error { return f.drain(ctx, g, true) },
			mend: func(ctx context.Context, f *fleet, g *gateway) error { return f.drain(ctx, g, false) }},
		{name: "not chosen by the pool any more", happen: func(ctx context.Context, f *fleet, g *gateway) error {
			return f.choose(ctx, &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: nameLabel, Operator: metav1.LabelSelectorOpNotIn, Values: []string{g.name}}}})
		}, mend: func(ctx context.Context, f *fleet, _ *gateway) error { return f.choose(ctx, nil) }},
	}
}

// linkDown is the one failure after which nobody can be asked about connections.
const linkDown = "link down"

// Result is what clients noticed of one failure.
type Result struct {
	Failure string `json:"failure"`
	Round   int    `json:"round"`
	// Requests are new connections with a question each, made while it happened; Failed of them were not answered within the time
	// that a client waits, and Slow ones took more than a second.
	Requests, Failed, Slow int
	// Gap is, by layer 2, the longest time in which no new connection to an address of the gateway was answered. By BGP each gateway has
	// a share of the flows to every address, and it is for how long packets of some new connections were lost.
	Gap time.Duration
	// Kept and Lost are connections that were there before: to addresses of the gateway, or, by BGP, to all.
	Kept, Lost int
	// Strangers are connections lost that had nothing to do with the gateway.
	Strangers int
	// Twice is how long two gateways answered for one address, at most.
	Twice time.Duration
}

// Broken are the promises that the result breaks. How long clients wait is none of them, since that depends on the machine, and on a busy one
// a connection of many may end as well.
func (o Options) Broken(r Result) (promises []string) {
	if r.Twice > Lease {
		promises = append(promises, fmt.Sprintf("two gateways answered for one address for %s, longer than a lease", r.Twice))
	}
	if r.Strangers > 0 {
		promises = append(promises, fmt.Sprintf("%d connections by other gateways were lost", r.Strangers))
	}
	if r.Failure != linkDown && r.Lost > r.Kept {
		promises = append(promises, fmt.Sprintf("%d connections were lost and %d kept, though the gateway's host went on", r.Lost, r.Kept))
	}
	return promises
}

// restarts are what a router with graceful restart hides: the dataplane works on while there is no manager.
func restarts() []failure {
	wait := func(ctx context.Context, _ *fleet, _ *gateway) error { return pause(ctx, time.Second) }
	return []failure{
		{name: "killed (kill -9) and started again", happen: func(ctx context.Context, f *fleet, g *gateway) error {
			g.process.Kill()
			return errors.Join(pause(ctx, time.Second), g.start(f))
		}, mend: wait},
		{name: "replaced (SIGTERM, --bgp-stay-on-exit)", happen: func(_ context.Context, f *fleet, g *gateway) error {
			g.process.Stop()
			return g.start(f)
		}, mend: wait},
	}
}

func (o Options) failures() []failure {
	if o.Restarts {
		return restarts()
	}
	return failures()
}

// Names of all that can happen with such options.
func (o Options) Names() (names []string) {
	for _, f := range o.failures() {
		names = append(names, f.name)
	}
	return names
}

// Run brings about what the options say, and hands over each result as it comes.
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
			victim := f.gateways[(round+i)%len(f.gateways)]
			r, err := f.suffer(ctx, failure, victim)
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

// rest is for clients to know where addresses are: they heed no announcement within a second of another one (locktime, arp(7)), and the
// last comes a second and a half after an address has moved.
const rest = 2500 * time.Millisecond

// How long is looked before and after.
const (
	before = time.Second
	after  = 5 * time.Second
)

// suffer has one gateway fail once.
func (f *fleet) suffer(ctx context.Context, what failure, victim *gateway) (r Result, err error) {
	witness, load, err := f.begin(ctx)
	if err != nil {
		return r, err
	}
	err = pause(ctx, before)
	at := time.Now()
	if err == nil {
		err = what.happen(ctx, f, victim)
	}
	if err == nil {
		err = pause(ctx, after)
	}
	if !f.bgp {
		r = load.stop(at, func(a netip.Addr) bool { return election.Winner(a, f.names(), nil) == victim.name })
	} else {
		r = load.stop(at, func(netip.Addr) bool { return true })
		r.Gap = load.disturbed(at)
	}
	err = errors.Join(err, what.mend(ctx, f, victim), f.settle(ctx), witness.stop())
	r.Failure, r.Twice = what.name, witness.twice()
	return r, err
}

// begin waits until the fleet is at rest, and then has it watched and used.
func (f *fleet) begin(ctx context.Context) (*witness, *load, error) {
	if err := f.settle(ctx); err != nil {
		return nil, nil, err
	}
	if err := pause(ctx, rest); err != nil {
		return nil, nil, err
	}
	w, err := f.watch()
	if err != nil {
		return nil, nil, err
	}
	l, err := f.load()
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

// gateway is one of the fleet.
type gateway struct {
	name    string
	host    *netlab.Namespace
	process *cluster.Process
	// address is its own on the clients' segment.
	address string
}
