package drill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// ScheduleResult is the result of a schedule.
type ScheduleResult struct {
	// Name is the name of the schedule. That of a random schedule has its seed, with which it can be repeated.
	Name string
	// Events is the number of failures and repairs.
	Events int
	// DoubleAnswer is the longest time in which two gateways answered for one address.
	DoubleAnswer time.Duration
	// Settled is how long after all repairs exactly one gateway answered for each address again.
	Settled time.Duration
}

// settledLimit is the limit for ScheduleResult.Settled, and for OutageResult.Silence.
const settledLimit = 10 * time.Second

// eventsOfSchedule is the number of failures and repairs of a random schedule, longestPause the longest time between two of them.
const (
	eventsOfSchedule = 12
	longestPause     = 1500 * time.Millisecond
)

// A kind is a kind of failure. A second event of the kind is the repair.
type kind int

const (
	killed    kind = iota // the process is killed, and started
	frozen                // the process is frozen, and continues
	unplugged             // the link to clients is down, and up
	cutOff                // the gateway does not reach the hub's API
	kindsOfGateway
	hubFrozen = kindsOfGateway // the hub's API is frozen, and continues
)

// event is a failure or a repair, and the time until the next event.
type event struct {
	gateway int
	kind    kind
	pause   time.Duration
}

// schedule is a sequence of failures and repairs. doubleAnswer is how long two gateways may answer for one address in it.
type schedule struct {
	name         string
	events       []event
	doubleAnswer time.Duration
}

// random returns the random schedule of a seed.
func random(seed uint64, gateways int) schedule {
	c := schedule{name: fmt.Sprintf("seed %d", seed), doubleAnswer: Lease}
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

// regressions returns schedules that once found a fault.
func regressions() []schedule {
	return []schedule{{
		// Two gateways continue without the API, because they hear no gateway that reaches it. The other one always reaches it.
		name: "back on a segment that others hold without a lease", doubleAnswer: 2 * interval,
		events: []event{{1, unplugged, 3 * time.Second}, {0, cutOff, 500 * time.Millisecond}, {2, cutOff, 4 * time.Second}, {1, unplugged, 3 * time.Second}},
	}}
}

// Schedules runs the schedules that once found a fault, and a random one for each seed, on one fleet. It calls done with each result.
func Schedules(ctx context.Context, o Options, seeds []uint64, done func(ScheduleResult) error) (err error) {
	f, err := newFleet(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	schedules := regressions()
	for _, seed := range seeds {
		schedules = append(schedules, random(seed, len(f.gateways)))
	}
	if err := f.settle(ctx); err != nil {
		return err
	}
	for _, c := range schedules {
		s, err := f.run(ctx, c)
		if err == nil {
			err = done(s)
		}
		if err == nil && s.DoubleAnswer > c.doubleAnswer {
			err = fmt.Errorf("two gateways answered for one address for %s, longer than %s", s.DoubleAnswer, c.doubleAnswer)
		}
		if err == nil {
			err = f.requireNoConflict(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, errors.Join(err, f.logs()))
		}
	}
	return nil
}

// state has the current failures of a gateway.
type state [kindsOfGateway]bool

func (f *fleet) run(ctx context.Context, c schedule) (s ScheduleResult, err error) {
	s.Name, s.Events = c.name, len(c.events)
	observer, err := f.observe()
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, observer.stop()) }()
	err = f.play(ctx, c.events)
	if err != nil {
		return s, err
	}
	repaired := time.Now()
	err = pause(ctx, (settledIntervals+1)*interval) // observations before the repair do not count
	for ; err == nil; err = pause(ctx, interval) {
		unclear := observer.unclear()
		s.Settled, s.DoubleAnswer = time.Since(repaired), observer.doubleAnswer()
		if len(unclear) == 0 {
			return s, nil
		}
		if s.Settled > settledLimit {
			return s, fmt.Errorf("%s after all repairs, no gateway or more than one answers for %v", s.Settled, unclear)
		}
	}
	return s, err
}

// play plays the events, and then repairs the remaining failures.
func (f *fleet) play(ctx context.Context, events []event) (err error) {
	states, frozenHub := make([]state, len(f.gateways)), false
	for _, e := range events {
		if e.kind == hubFrozen {
			frozenHub = !frozenHub
			err = f.lab.Hub.FreezeAPI(frozenHub)
		} else {
			err = f.toggle(ctx, f.gateways[e.gateway], &states[e.gateway], e.kind)
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
				err = errors.Join(err, f.toggle(context.WithoutCancel(ctx), g, &states[i], kind))
			}
		}
	}
	return err
}

// toggle makes a gateway fail, or repairs it.
func (f *fleet) toggle(ctx context.Context, g *gateway, is *state, in kind) error {
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

// settledIntervals is the number of consecutive intervals in which the same single gateway has to answer for an address.
const settledIntervals = 5

// unclear returns the addresses for which no gateway, or more than one, has answered in the last intervals.
func (w *observer) unclear() (addresses []netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := int(time.Since(w.began)/interval) - 1 // the current interval is not over
	for address, intervals := range w.answers {
		first := intervals[last]
		clear := len(first) == 1
		for at := last - settledIntervals + 1; at < last && clear; at++ {
			clear = len(intervals[at]) == 1
			for mac := range first {
				clear = clear && intervals[at][mac]
			}
		}
		if !clear {
			addresses = append(addresses, address)
		}
	}
	return addresses
}
