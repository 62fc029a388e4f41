package gateway

import (
	"context"
	"sync/atomic"
	"time"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/heartbeat"
)

// permit is whether the gateway may answer for addresses at all. While its lease lasts it may. When it cannot renew the lease, it
// goes on if no other gateway can either, since then nobody takes its addresses over.
type permit struct {
	lease         interface{ Holds() bool }
	segment       interface{ Verdict() heartbeat.Verdict }
	keepWhenAlone bool
	changed       func()

	// until is up to when it may go on without the lease, by clock.Now; 0 for not at all.
	until atomic.Int64
	// kept: it has gone on since it held the lease. It belongs to run.
	kept bool
}

// A decision to go on is good for a moment: a process that stood still has to decide anew.
const (
	decideEvery = 50 * time.Millisecond
	decideFor   = 3 * decideEvery
)

func (p *permit) may() bool { return p.lease.Holds() || p.until.Load() > int64(clock.Now()) }

// run decides, again and again, until ctx ends.
func (p *permit) run(ctx context.Context) error {
	ticker := time.NewTicker(decideEvery)
	defer ticker.Stop()
	before := false
	for ctx.Err() == nil {
		now := p.decide()
		if now != before {
			before = now
			p.changed()
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	p.until.Store(0)
	return nil
}

// decide returns whether the gateway may answer.
func (p *permit) decide() bool {
	if p.lease.Holds() {
		p.kept = true
		return true
	}
	verdict := p.segment.Verdict()
	p.kept = p.kept && (verdict == heartbeat.NoneReaches || verdict == heartbeat.Alone && p.keepWhenAlone)
	if p.kept {
		p.until.Store(int64(clock.Now() + decideFor))
	} else {
		p.until.Store(0)
	}
	return p.kept
}
