package ownership

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/heartbeat"
)

// Lease is this gateway's.
type Lease interface {
	// Term counts how often the gateway has got its Lease. holds tells whether it holds it now.
	LeaseNumber() (term uint64, holds bool)
}

// Segment is what is heard of other gateways on the segment.
type Segment interface {
	PeerState() heartbeat.PeerState
	// Since tells whether a peer has held a Lease since then, and whether one that was heard then is missing.
	PeersSince(then time.Duration) (leased, missing bool)
}

// RightOptions are what a right depends on.
type RightOptions struct {
	Lease   Lease
	Segment Segment
	// KeepWhenAlone: without the API, and without another gateway on the segment, the gateway goes on to answer.
	KeepWhenAlone bool
	// Shared: others may answer for the same addresses, so that it does no harm to go on where the gateway cannot tell.
	Shared bool
	// Changed is called when the right has come or gone.
	Changed func()
	Log     *slog.Logger
}

// Right is the right to answer for addresses at all. The gateway has it while its Lease lasts. When it cannot renew the Lease, it goes on if no other
// gateway can either, since then nobody takes its addresses over.
//
// Where it could not tell for a while, since it heard nobody or stood still, it is silent, and goes on with what it had once it is sure that nobody
// could have taken that over meanwhile. Otherwise it has to withdraw everything, and begins again with its next Lease.
//
// It is safe for concurrent use. It is made before what asks it, such as an announcer.
type Right struct {
	options RightOptions

	mu sync.Mutex // guards all below
	// term is the lease for which the gateway answers; until is up to when it may go on without it, by clock.Now.
	term  uint64
	until time.Duration
	// owns: what it answers for has not been withdrawn since it held the Lease.
	owns bool
	// safeAt is the last time that it was known that nobody else had any of that, by clock.Now. heard: it was so because no other gateway reached
	// the API. could is whether it could answer at the last look.
	safeAt       time.Duration
	heard, could bool
}

// A decision to go on is good for a moment: a process that stood still has to decide anew.
const (
	decideEvery = 50 * time.Millisecond
	decideFor   = 3 * decideEvery
)

// trusted is for how long after a gateway was sure that no other one has a lease none can have taken over: one that comes back after that
// waits for longer than a lease lasts, which is a second at least, and frames are heard within heartbeat.Silence.
const trusted = 500 * time.Millisecond

// NewRight returns a right that begins with the next Lease.
func NewRight(o RightOptions) *Right { return &Right{options: o} }

// MayAnswer tells whether the gateway may answer, as of now.
func (r *Right) MayAnswer() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holds() || r.owns && r.until > clock.Now()
}

// holdsLease tells whether it may because of its lease.
func (r *Right) holdsLease() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holds()
}

func (r *Right) holds() bool {
	term, holds := r.options.Lease.LeaseNumber()
	return r.owns && holds && term == r.term
}

// ownsAddresses tells whether what the gateway answers for is still its own, even if it has to be silent for the moment.
func (r *Right) ownsAddresses() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owns
}

// acquire is called when nothing is answered for: the Lease that there is now, if any, is good for what comes. It tells whether there is one.
func (r *Right) acquire() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	term, holds := r.options.Lease.LeaseNumber()
	if holds {
		r.owns, r.term, r.safeAt, r.could, r.until = true, term, clock.Now(), true, 0
		r.heard = false
	}
	return holds
}

// Run decides, again and again, until ctx ends.
func (r *Right) Run(ctx context.Context) error {
	ticker := time.NewTicker(decideEvery)
	defer ticker.Stop()
	mayBefore, keptBefore := false, false
	for ctx.Err() == nil {
		may, kept := r.decide(), r.ownsAddresses()
		if may != mayBefore || kept != keptBefore {
			mayBefore, keptBefore = may, kept
			r.options.Log.Info("the right to answer for addresses", "now", may, "kept", kept, "leased", r.holdsLease())
			r.options.Changed()
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.until = 0
	return nil
}

// decide returns whether the gateway may answer.
func (r *Right) decide() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.owns {
		return false
	}
	now := clock.Now()
	term, holds := r.options.Lease.LeaseNumber()
	switch {
	case !holds:
		r.owns, r.could = r.decideWithoutLease(now, r.options.Segment.PeerState())
	case term == r.term || r.options.Shared || r.heard && now-r.safeAt <= trusted || r.isAlone():
		r.term, r.safeAt, r.heard, r.could = term, now, false, true
	default:
		r.owns, r.could = false, false
	}
	r.until = 0
	if r.could && !holds {
		r.until = now + decideFor
	}
	return r.could
}

// noPeer tells whether no other gateway is on the segment.
func (r *Right) noPeer() bool { return r.options.Segment.PeerState() == heartbeat.NoPeer }

// isAlone tells whether it has gone on as the only gateway of the segment, where there was no other one when it had its lease either.
func (r *Right) isAlone() bool {
	if !r.could || !r.options.KeepWhenAlone || !r.noPeer() {
		return false
	}
	leased, missing := r.options.Segment.PeersSince(r.safeAt)
	return !leased && !missing
}

// decideWithoutLease tells whether the gateway keeps what it has without its lease, and whether it may answer for it now.
func (r *Right) decideWithoutLease(now time.Duration, verdict heartbeat.PeerState) (keeps, may bool) {
	switch verdict {
	case heartbeat.PeerReachesAPI:
		back := r.heard && now-r.safeAt <= trusted // so may this one be in a moment
		return back, back
	case heartbeat.NoPeer:
		return true, r.options.KeepWhenAlone
	case heartbeat.Unknown:
		return true, r.options.Shared && r.could
	}
	if now-r.safeAt > heartbeat.Silence && !r.options.Shared {
		leased, missing := r.options.Segment.PeersSince(r.safeAt)
		if leased || missing && !r.options.KeepWhenAlone {
			return !leased, false
		}
	}
	r.safeAt, r.heard = now, true
	return true, true
}
