package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"kubelb.k8c.io/conformance/cases"
)

// errInterrupted says that the context of a suite ended.
var errInterrupted = errors.New("interrupted")

// hangsInRow is the number of cases in a row in which the backend may hang.
const hangsInRow = 3

// runAll runs the cases until ctx ends, or until the backend hangs in too many of them in a row. It gives results in the order of the
// cases, and returns when all runs have cleaned up.
func (r runner) runAll(ctx context.Context, chosen []cases.Case, result func(Run)) error {
	running, stop := context.WithCancel(ctx)
	results, wait := r.start(running, chosen)
	defer wait()
	defer stop()
	interrupted, hangs := "", 0
	for i, c := range chosen {
		r.options.Monitor.cases(i, len(chosen))
		hung, ran := "", false
		for _, run := range <-results[i] {
			if run.interrupted {
				interrupted = cmp.Or(interrupted, c.Name)
				continue
			}
			result(run)
			hung = cmp.Or(hung, run.Hung)
			ran = ran || run.Outcome != Unsupported
		}
		switch {
		case hung != "":
			hangs++
		case ran:
			hangs = 0
		}
		if hangs == hangsInRow && !r.options.KeepGoing && ctx.Err() == nil {
			return fmt.Errorf("the backend hangs in %d cases in a row, the last time in %s (case %s): the other %d cases did not run; --keep-going goes on", hangs, hung, c.Name, len(chosen)-i-1)
		}
	}
	switch {
	case ctx.Err() == nil:
		return nil
	case interrupted == "":
		return errInterrupted
	}
	return fmt.Errorf("%w during case %s", errInterrupted, interrupted)
}

// start runs the cases in the background, several of them side by side, exclusive ones alone, and those that wait beside all others. Each case has a channel for its results. It gets
// nothing if ctx ends before the case begins. The caller calls wait.
func (r runner) start(ctx context.Context, chosen []cases.Case) (results []chan []Run, wait func()) {
	side := max(1, r.options.Parallel)
	free := make(chan struct{}, side)
	for range side {
		free <- struct{}{}
	}
	for range chosen {
		results = append(results, make(chan []Run, 1))
	}
	var all sync.WaitGroup
	run := func(i int) {
		defer close(results[i])
		if ctx.Err() == nil {
			results[i] <- r.runInFamilies(ctx, chosen[i])
		}
	}
	for i, c := range chosen {
		if c.Waits {
			all.Go(func() { run(i) })
		}
	}
	all.Go(func() {
		for i, c := range chosen {
			if c.Waits {
				continue
			}
			needs := 1
			if c.Exclusive {
				needs = side
			}
			for range needs {
				<-free
			}
			all.Go(func() {
				run(i)
				for range needs {
					free <- struct{}{}
				}
			})
		}
	})
	return results, all.Wait
}
