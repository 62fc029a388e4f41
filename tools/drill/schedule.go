package drill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Schedule is what became of a random schedule of failures and returns.
type Schedule struct {
	Seed uint64 `json:"seed"`
	// Events is how many failures and returns there were.
	Events int
	// Twice is how long two gateways answered for one address, at most.
	Twice time.Duration
	// Quiet is how long, after everything had been mended, until each address was answered for by one gateway again.
	Quiet time.Duration
}

// quietLimit is how long that may take.
const quietLimit = 10 * time.Second

// eventsOfSchedule is how many failures and returns a schedule has, longestPause what lies between two of them at most.
const (
	eventsOfSchedule = 12
	longestPause     = 1500 * time.Millisecond
)

// Schedules runs one schedule for each seed, on one fleet, and hands over each result as it comes.
func Schedules(ctx context.Context, o Options, seeds []uint64, done func(Schedule) error) (err error) {
	f, err := newFleet(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	for _, seed := range seeds {
		s, err := f.schedule(ctx, seed)
		if err == nil {
			err = done(s)
		}
		if err != nil {
			return fmt.Errorf("the schedule of seed %d: %w", seed, errors.Join(err, f.logs()))
		}
	}
	return nil
}

// state is what is wrong with a gateway at present.
type state struct{ dead, frozen, unplugged, cutOff bool }

func (f *fleet) schedule(ctx context.Context, seed uint64) (s Schedule, err error) {
	s.Seed = seed
	r := rand.New(rand.NewPCG(seed, 0))
	witness, err := f.watch()
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, witness.stop()) }()
	states := map[*gateway]*state{}
	for _, g := range f.gateways {
		states[g] = &state{}
	}
	frozenHub := false
	for ; s.Events < eventsOfSchedule && err == nil; s.Events++ {
		g := f.gateways[r.IntN(len(f.gateways))]
		if r.IntN(10) == 0 {
			frozenHub = !frozenHub
			err = f.lab.Hub.FreezeAPI(frozenHub)
		} else {
			err = f.turn(ctx, g, states[g], r.IntN(4))
		}
		err = errors.Join(err, pause(ctx, time.Duration(r.Int64N(int64(longestPause)))))
	}
	if frozenHub {
		err = errors.Join(err, f.lab.Hub.FreezeAPI(false))
	}
	for g, is := range states {
		for kind, wrong := range []bool{is.dead, is.frozen, is.unplugged, is.cutOff} {
			if wrong {
				err = errors.Join(err, f.turn(context.WithoutCancel(ctx), g, is, kind))
			}
		}
	}
	if err != nil {
		return s, err
	}
	quiet := time.Now()
	for {
		if err := pause(ctx, turn); err != nil {
			return s, err
		}
		unclear := witness.unclear()
		s.Quiet, s.Twice = time.Since(quiet), witness.twice()
		if len(unclear) == 0 {
			return s, nil
		}
		if s.Quiet > quietLimit {
			return s, fmt.Errorf("%s after everything was mended, %v are not answered for by one gateway", s.Quiet, unclear)
		}
	}
}

// turn has a gateway fail in one way, or come back from that.
func (f *fleet) turn(ctx context.Context, g *gateway, is *state, kind int) error {
	switch kind {
	case 0:
		if is.dead = !is.dead; is.dead {
			is.frozen = false
			g.process.Kill()
			return nil
		}
		return g.start(f)
	case 1:
		if is.dead {
			return nil
		}
		if is.frozen = !is.frozen; is.frozen {
			return g.process.Freeze()
		}
		return g.process.Thaw()
	case 2:
		is.unplugged = !is.unplugged
		return f.lab.SetLinkOutside(g.name, !is.unplugged)
	default:
		if is.cutOff = !is.cutOff; is.cutOff {
			return g.cutOff(ctx, f)
		}
		return g.reconnect(ctx, f)
	}
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
