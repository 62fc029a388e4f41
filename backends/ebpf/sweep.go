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
	// sweepInterval is how often flows are looked through for those that have ended.
	sweepInterval = 10 * time.Second
	// oftenInterval is how often where some frontend limits how long its connections may be idle, or how many there are.
	oftenInterval = time.Second
)

// sweep forgets flows that have ended, and frees what only they needed.
func (b *Backend) sweep() error {
	b.mu.Lock()
	left := slices.Collect(maps.Keys(b.state.left))
	b.mu.Unlock()
	stamp, idle, err := b.kernel.sweep()
	if err != nil {
		return err
	}
	b.mu.Lock()
	err = b.freeFlowless(left, stamp)
	b.mu.Unlock()
	return errors.Join(err, end(idle))
}

// freeFlowless gives back the endpoints of which the sweep has met no flow. They had left before it began: what leaves meanwhile may have
// flows that it has not met, or that were written over.
func (b *Backend) freeFlowless(left []uint32, stamp uint32) error {
	for _, handle := range left {
		var e endpoint
		if err := b.kernel.objects.Endpoints.Lookup(handle, &e); err != nil {
			return fmt.Errorf("map %s: %w", mapEndpoints, err)
		}
		if e.Used == stamp {
			continue
		}
		p := b.state.planFlowless(handle)
		if err := b.kernel.apply(p.writes); err != nil {
			return err
		}
		p.commit()
	}
	return nil
}

// sweep runs the program that forgets flows. It returns the mark of the endpoints whose flows stay, and the connections that were
// idle for longer than their frontends allow, in both directions.
func (k *kernel) sweep() (stamp uint32, idle map[tuple]bool, err error) {
	k.stamp++
	run := sweepRun{Stamp: k.stamp}
	if _, err := k.objects.Sweep.Run(&ebpf.RunOptions{Context: &run}); err != nil {
		return 0, nil, fmt.Errorf("sweep flows: %w", err)
	}
	idle = map[tuple]bool{}
	var count uint32
	if err := k.objects.EndedCount.Lookup(uint32(0), &count); err != nil {
		return 0, nil, fmt.Errorf("count connections that were idle: %w", err)
	}
	for i := range count {
		var e ended
		if err := k.objects.Ended.Lookup(i, &e); err != nil {
			return 0, nil, fmt.Errorf("read connections that were idle: %w", err)
		}
		idle[e.Client], idle[e.Answers] = true, true
	}
	return run.Stamp, idle, nil
}
