package ebpf

import (
	"errors"
	"fmt"
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
	stamp, idle, err := b.kernel.sweep()
	if err != nil {
		return err
	}
	b.mu.Lock()
	err = b.freeFlowless(stamp)
	b.mu.Unlock()
	return errors.Join(err, end(idle))
}

// freeFlowless gives back the endpoints that have left and of which the sweep has met no flow.
func (b *Backend) freeFlowless(stamp uint32) error {
	for handle := range b.state.left {
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
	for {
		var e ended
		err := k.objects.Ended.LookupAndDelete(nil, &e)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return run.Stamp, idle, nil
		}
		if err != nil {
			return 0, nil, fmt.Errorf("read connections that were idle: %w", err)
		}
		idle[e.Client], idle[e.Answers] = true, true
	}
}
