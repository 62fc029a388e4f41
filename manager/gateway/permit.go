package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/heartbeat"
)

// permit is whether the gateway may answer for addresses at all. While its lease lasts it may. When it cannot renew the lease, it
// goes on if no other gateway can either, since then nobody takes its addresses over.
//
// Where it could not tell for a while, since it heard nobody or stood still, it is silent, and goes on with what it had once it is
// sure that nobody could have taken that over meanwhile. Otherwise it has to let go of everything, and begins anew with its next lease.
type permit struct {
	lease interface {
		Term() (term uint64, holds bool)
	}
	segment interface {
		Verdict() heartbeat.Verdict
		Since(then time.Duration) (leased, missing bool)
	}
	keepWhenAlone bool
	// shared: others may answer for the same addresses, so that it does no harm to go on where it cannot tell.
	shared  bool
	changed func()
	log     *slog.Logger

	mu sync.Mutex // guards all below
	// term is the lease for which the gateway answers; until is up to when it may go on without it, by clock.Now.
	term  uint64
	until time.Duration
	// kept: what it answers for has not been let go since it held the lease.
	kept bool
	// sure is the last time that it was known that nobody else had any of that, by clock.Now; heard: it was so because no other gateway
	// reached the API. might is whether it might answer at the last look.
	sure         time.Duration
	heard, might bool
}

// A decision to go on is good for a moment: a process that stood still has to decide anew.
const (
	decideEvery = 50 * time.Millisecond
	decideFor   = 3 * decideEvery
)

// trusted is for how long after a gateway was sure that no other one has a lease none can have taken over: one that comes back after that
// waits for longer than a lease lasts, which is a second at least, and frames are heard within heartbeat.Silence.
const trusted = 500 * time.Millisecond

// may tells whether the gateway may answer, as of now.
func (p *permit) may() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holds() || p.kept && p.until > clock.Now()
}

// holdsLease tells whether it may because of its lease.
func (p *permit) holdsLease() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holds()
}

func (p *permit) holds() bool {
	term, holds := p.lease.Term()
	return p.kept && holds && term == p.term
}

// keeps tells whether what the gateway answers for is still its own, even if it has to be silent for the moment.
func (p *permit) keeps() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept
}

// begin is called when nothing is answered for: the lease that there is now, if any, is good for what comes. It tells whether there is one.
func (p *permit) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	term, holds := p.lease.Term()
	if holds {
		p.kept, p.term, p.sure, p.might, p.until = true, term, clock.Now(), true, 0
		p.heard = false
	}
	return holds
}

// run decides, again and again, until ctx ends.
func (p *permit) run(ctx context.Context) error {
	ticker := time.NewTicker(decideEvery)
	defer ticker.Stop()
	mayBefore, keptBefore := false, false
	for ctx.Err() == nil {
		may, kept := p.decide(), p.keeps()
		if may != mayBefore || kept != keptBefore {
			mayBefore, keptBefore = may, kept
			p.log.Info("the right to answer for addresses", "now", may, "kept", kept, "leased", p.holdsLease())
			p.changed()
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = 0
	return nil
}

// decide returns whether the gateway may answer.
func (p *permit) decide() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.kept {
		return false
	}
	now := clock.Now()
	term, holds := p.lease.Term()
	switch {
	case !holds:
		p.kept, p.might = p.goesOn(now, p.segment.Verdict())
	case term == p.term || p.shared || p.heard && now-p.sure <= trusted || p.isOnly():
		p.term, p.sure, p.heard, p.might = term, now, false, true
	default:
		p.kept, p.might = false, false
	}
	p.until = 0
	if p.might && !holds {
		p.until = now + decideFor
	}
	return p.might
}

// alone tells whether no other gateway is on the segment.
func (p *permit) alone() bool { return p.segment.Verdict() == heartbeat.Alone }

// isOnly tells whether it has gone on as the only gateway of the segment, where there was no other one when it had its lease either.
func (p *permit) isOnly() bool {
	if !p.might || !p.keepWhenAlone || !p.alone() {
		return false
	}
	leased, missing := p.segment.Since(p.sure)
	return !leased && !missing
}

// goesOn tells whether the gateway keeps what it has without its lease, and whether it may answer for it now.
func (p *permit) goesOn(now time.Duration, verdict heartbeat.Verdict) (keeps, may bool) {
	switch verdict {
	case heartbeat.OneReaches:
		back := p.heard && now-p.sure <= trusted // so may this one be in a moment
		return back, back
	case heartbeat.Alone:
		return true, p.keepWhenAlone
	case heartbeat.Unsure:
		return true, p.shared && p.might
	}
	if now-p.sure > heartbeat.Silence && !p.shared {
		leased, missing := p.segment.Since(p.sure)
		if leased || missing && !p.keepWhenAlone {
			return !leased, false
		}
	}
	p.sure, p.heard = now, true
	return true, true
}
