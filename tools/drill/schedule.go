package drill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Schedule is what became of a course of failures and returns.
type Schedule struct {
	// Name tells how to have it again: of a random one it is the seed.
	Name string
	// Events is how many failures and returns there were.
	Events int
	// Twice is how long two gateways answered for one address, at most.
	Twice time.Duration
	// Quiet is how long, after everything had been mended, until each address was answered for by one gateway again.
	Quiet time.Duration
}

// quietLimit is how long that may take.
const quietLimit = 10 * time.Second

// eventsOfSchedule is how many failures and returns a random schedule has, longestPause what lies between two of them at most.
const (
	eventsOfSchedule = 12
	longestPause     = 1500 * time.Millisecond
)

// A kind is what fails, or comes back if it had failed.
type kind int

const (
	killed    kind = iota // and started again
	frozen                // its process stands still, and goes on
	unplugged             // its link to clients is down, and up
	cutOff                // from the hub's API
	kindsOfGateway
	hubFrozen = kindsOfGateway // the hub's API stands still for all, and goes on
)

// event is one failure or return, and how long nothing happens after it.
type event struct {
	gateway int
	kind    kind
	pause   time.Duration
}

// course is failures and returns one after the other, and how long two gateways may answer for one address in it.
type course struct {
	name   string
	events []event
	twice  time.Duration
}

// random is the course of a seed, always the same.
func random(seed uint64, gateways int) course {
	c := course{name: fmt.Sprintf("seed %d", seed), twice: Lease}
	r := rand.New(rand.NewPCG(seed, 0))
	for range eventsOfSchedule {
		e := event{gateway: r.IntN(gateways), kind: hubFrozen}
		if r.IntN(10) > 0 {
			e.kind = kind(r.IntN(int(kindsOfGateway)))
		}
		e.pause = time.Duration(r.Int64N(int64(longestPause)))
		c.events = append(c.events, e)
	}
	return c
}

// met are courses in which gateways once did what they must not.
func met() []course {
	return []course{{
		// The two others go on without the API, as they hear nobody who reaches it. The first has it all the time.
		name: "back on a segment that others hold without a lease", twice: 2 * turn,
		events: []event{{1, unplugged, 3 * time.Second}, {0, cutOff, 500 * time.Millisecond}, {2, cutOff, 4 * time.Second}, {1, unplugged, 3 * time.Second}},
	}}
}

// Schedules runs the courses that have once shown a fault, and a random one for each seed, on one fleet, and hands over each result as it
// comes.
func Schedules(ctx context.Context, o Options, seeds []uint64, done func(Schedule) error) (err error) {
	f, err := newFleet(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	courses := met()
	for _, seed := range seeds {
		courses = append(courses, random(seed, len(f.gateways)))
	}
	if err := f.settle(ctx); err != nil {
		return err
	}
	for _, c := range courses {
		s, err := f.run(ctx, c)
		if err == nil {
			err = done(s)
		}
		if err == nil && s.Twice > c.twice {
			err = fmt.Errorf("two gateways answered for one address for %s, longer than %s", s.Twice, c.twice)
		}
		if err == nil {
			err = f.unclaimed(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, errors.Join(err, f.logs()))
		}
	}
	return nil
}

// state is what is wrong with a gateway at present.
type state [kindsOfGateway]bool

func (f *fleet) run(ctx context.Context, c course) (s Schedule, err error) {
	s.Name, s.Events = c.name, len(c.events)
	witness, err := f.watch()
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, witness.stop()) }()
	err = f.pass(ctx, c.events)
	if err != nil {
		return s, err
	}
	quiet := time.Now()
	err = pause(ctx, (settledTurns+1)*turn) // what was seen before does not count
	for ; err == nil; err = pause(ctx, turn) {
		unclear := witness.unclear()
		s.Quiet, s.Twice = time.Since(quiet), witness.twice()
		if len(unclear) == 0 {
			return s, nil
		}
		if s.Quiet > quietLimit {
			return s, fmt.Errorf("%s after everything was mended, %v are not answered for by one gateway", s.Quiet, unclear)
		}
	}
	return s, err
}

// pass has everything fail and return, and mends in the end what is still wrong.
func (f *fleet) pass(ctx context.Context, events []event) (err error) {
	states, frozenHub := make([]state, len(f.gateways)), false
	for _, e := range events {
		if e.kind == hubFrozen {
			frozenHub = !frozenHub
			err = f.lab.Hub.FreezeAPI(frozenHub)
		} else {
			err = f.turn(ctx, f.gateways[e.gateway], &states[e.gateway], e.kind)
		}
		if err = errors.Join(err, pause(ctx, e.pause)); err != nil {
			break
		}
	}
	if frozenHub {
		err = errors.Join(err, f.lab.Hub.FreezeAPI(false))
	}
	for i, g := range f.gateways {
		for kind := range kindsOfGateway {
			if states[i][kind] {
				err = errors.Join(err, f.turn(context.WithoutCancel(ctx), g, &states[i], kind))
			}
		}
	}
	return err
}

// turn has a gateway fail in one way, or come back from that.
func (f *fleet) turn(ctx context.Context, g *gateway, is *state, in kind) error {
	if in == frozen && is[killed] {
		return nil
	}
	is[in] = !is[in]
	switch in {
	case killed:
		if !is[killed] {
			return g.start(f)
		}
		is[frozen] = false
		g.process.Kill()
		return nil
	case frozen:
		if is[frozen] {
			return g.process.Freeze()
		}
		return g.process.Thaw()
	case unplugged:
		return f.lab.SetClientsLink(g.name, !is[unplugged])
	}
	if is[cutOff] {
		return g.cutOff(ctx, f)
	}
	return g.reconnect(ctx, f)
}

// settledTurns is for how many turns in a row an address has to have been answered for by one gateway.
const settledTurns = 5

// unclear are the addresses that nobody, or more than one gateway, has answered for in the last turns.
func (w *witness) unclear() (addresses []netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := int(time.Since(w.began)/turn) - 1 // the present one is not over
	for address, turns := range w.answers {
		first := turns[last]
		clear := len(first) == 1
		for at := last - settledTurns + 1; at < last && clear; at++ {
			clear = len(turns[at]) == 1
			for mac := range first {
				clear = clear && turns[at][mac]
			}
		}
		if !clear {
			addresses = append(addresses, address)
		}
	}
	return addresses
}
