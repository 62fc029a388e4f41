package watchdog

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// try is an attempt to connect.
type try struct {
	flow
	frontendState *frontendState
	seq           uint32
	// frontendSeq is the frontend's next sequence number, once the connection is established.
	frontendSeq uint32
	started     time.Time
	repeated    bool
	openedAt    time.Time
}

// newTry returns a new try of a frontend.
func (w *Watchdog) newTry(state *frontendState, now time.Time) *try {
	source, _ := w.veth.source(state.Addr())
	w.port = (w.port + 1) % portCount
	t := &try{flow: flow{netip.AddrPortFrom(source, firstPort+w.port), state.AddrPort}, frontendState: state, seq: rand.Uint32(), started: now}
	w.tries[t.flow] = t
	state.trying = true
	return t
}

func (t *try) syn() tcpSegment { return tcpSegment{flow: t.flow, seq: t.seq, flags: flagSYN} }

// reset returns the segment that ends the connection at once.
func (t *try) reset() tcpSegment { return tcpSegment{flow: t.flow, seq: t.seq + 1, flags: flagRST} }

// isAnswerTo reports whether the answer belongs to what the try has sent. Any host whose packets this host forwards may send packets with the
// addresses of the try, but does not know its sequence numbers.
func (a answer) isAnswerTo(t *try) bool {
	switch {
	case a.unreachable:
		return a.seq == t.seq || a.seq == t.seq+1
	case a.flags&flagRST != 0 && !t.openedAt.IsZero():
		return a.seq == t.frontendSeq
	}
	return a.flags&flagACK != 0 && a.ack == t.seq+1
}

// handleAnswer handles an answer.
func (w *Watchdog) handleAnswer(a answer, now time.Time) {
	t := w.tries[a.flow]
	switch {
	case t == nil || !a.isAnswerTo(t):
	case a.noPort:
		w.finish(t, Refused, now)
	case a.unreachable:
		w.finish(t, Unreachable, now)
	case a.flags&flagRST != 0 && t.openedAt.IsZero():
		w.finish(t, Refused, now)
	case a.flags&flagRST != 0:
		w.finish(t, Reset, now)
	case a.data && !t.openedAt.IsZero():
		_ = w.veth.send(t.reset())
		w.finish(t, Answered, now)
	case a.flags&flagFIN != 0 && !t.openedAt.IsZero():
		_ = w.veth.send(t.reset())
		w.finish(t, Closed, now)
	case a.flags&(flagSYN|flagACK) == flagSYN|flagACK && t.openedAt.IsZero():
		t.openedAt, t.frontendSeq = now, a.seq+1
		_ = w.veth.send(tcpSegment{flow: t.flow, seq: t.seq + 1, ack: a.seq + 1, flags: flagACK})
	}
}

// allowForPause extends the tries by the time for which this process stood still: their answers may have arrived and were not read.
func (w *Watchdog) allowForPause(now time.Time) {
	pause := now.Sub(w.lastTick)
	first := w.lastTick.IsZero()
	if w.lastTick = now; first || pause < pauseThreshold {
		return
	}
	for _, t := range w.tries {
		t.started = t.started.Add(pause)
		if !t.openedAt.IsZero() {
			t.openedAt = t.openedAt.Add(pause)
		}
	}
}

// expire ends tries at their deadline, and repeats SYNs.
func (w *Watchdog) expire(now time.Time) {
	w.allowForPause(now)
	for _, t := range w.tries {
		switch waited := now.Sub(t.started); {
		case !t.openedAt.IsZero() && now.Sub(t.openedAt) >= w.times.holdTime:
			_ = w.veth.send(t.reset())
			w.finish(t, Answered, now)
		case !t.openedAt.IsZero():
		case waited >= w.times.answerTimeout && !t.started.After(w.lastOverrun):
			w.discard(t, now)
		case waited >= w.times.answerTimeout:
			w.finish(t, Unanswered, now)
		case waited >= w.times.repeatAfter && !t.repeated:
			t.repeated = true
			_ = w.veth.send(t.syn())
		}
	}
}

// discard ends a try whose answer may have been lost in the host, which says nothing about the frontend.
func (w *Watchdog) discard(t *try, now time.Time) {
	delete(w.tries, t.flow)
	t.frontendState.trying, t.frontendState.due = false, now.Add(w.times.retryPause)
}
