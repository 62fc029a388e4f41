package ownership

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"kubelb.k8c.io/manager/clock"
	"kubelb.k8c.io/manager/heartbeat"
)

// Lease is this gateway's Lease.
type Lease interface {
	// LeaseNumber returns how often the gateway has acquired its Lease, and whether the Lease is valid now.
	LeaseNumber() (term uint64, holds bool)
}

// Segment is what is heard of other gateways on the segment.
type Segment interface {
	PeerState() heartbeat.PeerState
	// PeersSince reports whether a peer that is heard has had a Lease since then, and whether a peer that was heard then is missing.
	PeersSince(then time.Duration) (leased, missing bool)
}

// RightOptions configure a Right.
type RightOptions struct {
	Lease   Lease
	Segment Segment
	// KeepWhenAlone: without the API, and without another gateway on the segment, the gateway goes on to answer.
	KeepWhenAlone bool
	// Shared: other gateways may answer for the same addresses, so that it does no harm to go on in doubt.
	Shared bool
	// Changed is called when the right has come or gone.
	Changed func()
	Log     *slog.Logger
}

// Right is the right to answer for addresses. The gateway has it while its Lease is valid. If it cannot renew the Lease, it goes on as long as no
// other gateway can renew its Lease either: then nobody takes its addresses over.
//
// If the gateway could not know that for a while, because it heard nobody or stood still, it is silent. It goes on with its addresses once it is sure
// that no peer could have taken them over. Otherwise it withdraws everything, and begins again with its next Lease.
//
// A Right is safe for concurrent use. It is created before the announcer, which asks it.
type Right struct {
	options RightOptions

	mu sync.Mutex // guards all below
	// leaseNumber is the Lease for which the gateway answers. validUntil is when a decision to go on without a Lease ends, by clock.Now.
	leaseNumber uint64
	validUntil  time.Duration
	// owns: the addresses of the gateway were not withdrawn since it had the Lease.
	owns bool
	// safeAt is the last time at which surely no peer had any of these addresses, by clock.Now. byHeartbeats: this was known because no other gateway
	// reached the API. couldAnswer: the last decision allowed to answer.
	safeAt                    time.Duration
	byHeartbeats, couldAnswer bool
}

// A decision to go on is valid for decisionLifetime: a process that stood still has to decide again.
const (
	decisionInterval = 50 * time.Millisecond
	decisionLifetime = 3 * decisionInterval
)

// trustPeriod is the time after a safe moment in which no peer can have taken over. A peer that reaches the API again waits for longer than its Lease
// lasts, which is a second at least, and its frames are heard within heartbeat.Silence.
const trustPeriod = 500 * time.Millisecond

// NewRight returns a right that begins with the next Lease.
func NewRight(o RightOptions) *Right { return &Right{options: o} }

// MayAnswer reports whether the gateway may answer now.
func (r *Right) MayAnswer() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaseValid() || r.owns && r.validUntil > clock.Now()
}

// holdsLease reports whether the gateway may answer because of its Lease.
func (r *Right) holdsLease() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaseValid()
}

func (r *Right) leaseValid() bool {
	number, holds := r.options.Lease.LeaseNumber()
	return r.owns && holds && number == r.leaseNumber
}

// ownsAddresses reports whether the addresses of the gateway are still its own, even if it has to be silent for the moment.
func (r *Right) ownsAddresses() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owns
}

// acquire is called when no address is answered for. It binds the right to the present Lease, and returns whether there is one.
func (r *Right) acquire() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	number, holds := r.options.Lease.LeaseNumber()
	if holds {
		r.owns, r.leaseNumber, r.safeAt, r.couldAnswer, r.validUntil = true, number, clock.Now(), true, 0
		r.byHeartbeats = false
	}
	return holds
}

// Run decides again and again until ctx ends.
func (r *Right) Run(ctx context.Context) error {
	ticker := time.NewTicker(decisionInterval)
	defer ticker.Stop()
	mayBefore, keptBefore := false, false
	for ctx.Err() == nil {
		mayAnswer, kept := r.decide(), r.ownsAddresses()
		if mayAnswer != mayBefore || kept != keptBefore {
			mayBefore, keptBefore = mayAnswer, kept
			r.options.Log.Info("the right to answer for addresses has changed", "mayAnswer", mayAnswer, "keepsAddresses", kept, "holdsLease", r.holdsLease())
			r.options.Changed()
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.validUntil = 0
	return nil
}

// decide decides whether the gateway may answer.
func (r *Right) decide() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.owns {
		return false
	}
	now := clock.Now()
	number, holds := r.options.Lease.LeaseNumber()
	switch {
	case !holds:
		r.owns, r.couldAnswer = r.decideWithoutLease(now, r.options.Segment.PeerState())
	case number == r.leaseNumber || r.options.Shared || r.byHeartbeats && now-r.safeAt <= trustPeriod || r.isAlone():
		r.leaseNumber, r.safeAt, r.byHeartbeats, r.couldAnswer = number, now, false, true
	default:
		r.owns, r.couldAnswer = false, false
	}
	r.validUntil = 0
	if r.couldAnswer && !holds {
		r.validUntil = now + decisionLifetime
	}
	return r.couldAnswer
}

// noPeer reports whether no other gateway is on the segment.
func (r *Right) noPeer() bool { return r.options.Segment.PeerState() == heartbeat.NoPeer }

// isAlone reports whether the gateway goes on as the only one of the segment, and was the only one when it had its Lease.
func (r *Right) isAlone() bool {
	if !r.couldAnswer || !r.options.KeepWhenAlone || !r.noPeer() {
		return false
	}
	leased, missing := r.options.Segment.PeersSince(r.safeAt)
	return !leased && !missing
}

// decideWithoutLease reports whether the gateway keeps its addresses without a Lease, and whether it may answer for them now.
func (r *Right) decideWithoutLease(now time.Duration, peerState heartbeat.PeerState) (keeps, mayAnswer bool) {
	switch peerState {
	case heartbeat.PeerReachesAPI:
		back := r.byHeartbeats && now-r.safeAt <= trustPeriod // the API is back, and this gateway may get its Lease, too
		return back, back
	case heartbeat.NoPeer:
		return true, r.options.KeepWhenAlone
	case heartbeat.Unknown:
		return true, r.options.Shared && r.couldAnswer
	}
	if now-r.safeAt > heartbeat.Silence && !r.options.Shared {
		leased, missing := r.options.Segment.PeersSince(r.safeAt)
		if leased || missing && !r.options.KeepWhenAlone {
			return !leased, false
		}
	}
	r.safeAt, r.byHeartbeats = now, true
	return true, true
}
