package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

const (
	// sweepInterval is the interval between sweeps.
	sweepInterval = 10 * time.Second
	// pollInterval is the interval between polls of Watch. With frequentSweeps it is also the interval between sweeps.
	pollInterval = time.Second
)

// sweep deletes flows that have ended, and frees removed endpoints without flows.
func (b *Backend) sweep() error {
	b.mu.Lock()
	removed := slices.Collect(maps.Keys(b.state.removed))
	b.mu.Unlock()
	stamp, idle, err := b.kernel.sweep()
	if err != nil {
		return err
	}
	b.mu.Lock()
	err = b.freeEndpoints(removed, stamp)
	b.mu.Unlock()
	return errors.Join(err, endConnections(idle))
}

// freeEndpoints frees the removed endpoints for which the sweep has found no flow. They were removed before the sweep began: the sweep may have missed flows of an
// endpoint that was removed later.
func (b *Backend) freeEndpoints(removed []uint32, stamp uint32) error {
	for _, handle := range removed {
		var e endpoint
		if err := b.kernel.objects.Endpoints.Lookup(handle, &e); err != nil {
			return fmt.Errorf("map %s: %w", mapEndpoints, err)
		}
		if e.LastSweep == stamp {
			continue
		}
		p := b.state.planFreeEndpoint(handle)
		if err := b.kernel.apply(p.writes); err != nil {
			return err
		}
		p.commit()
	}
	return nil
}

// sweep runs the program sweep. It returns the stamp of endpoints that have flows, and both tuples of each connection that was idle for longer than its frontend
// allows.
func (k *kernel) sweep() (stamp uint32, idle map[tuple]bool, err error) {
	k.stamp++
	run := sweepRun{Stamp: k.stamp}
	if _, err := k.objects.Sweep.Run(&ebpf.RunOptions{Context: &run}); err != nil {
		return 0, nil, fmt.Errorf("sweep flows: %w", err)
	}
	idle = map[tuple]bool{}
	var count uint32
	if err := k.objects.EndedCount.Lookup(uint32(0), &count); err != nil {
		return 0, nil, fmt.Errorf("read the number of idle connections: %w", err)
	}
	for i := range count {
		var e ended
		if err := k.objects.Ended.Lookup(i, &e); err != nil {
			return 0, nil, fmt.Errorf("read idle connections: %w", err)
		}
		idle[e.Client], idle[e.Answers] = true, true
	}
	return run.Stamp, idle, nil
}
