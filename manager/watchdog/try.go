package watchdog

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// try is a connection on its way.
type try struct {
	flow
	of  *watched
	seq uint32
	// theirs is the frontend's next sequence number, once the connection is open.
	theirs uint32
	began  time.Time
	again  bool
	opened time.Time
}

// dial makes a new try of a frontend.
func (w *Watchdog) dial(is *watched, now time.Time) *try {
	source, _ := w.lane.source(is.Addr())
	w.port = (w.port + 1) % portsToUse
	t := &try{flow: flow{netip.AddrPortFrom(source, firstPort+w.port), is.AddrPort}, of: is, seq: rand.Uint32(), began: now}
	w.tries[t.flow] = t
	is.trying = true
	return t
}

func (t *try) syn() tcpSegment { return tcpSegment{flow: t.flow, seq: t.seq, flags: flagSYN} }

// reset is the segment that ends the connection at once.
func (t *try) reset() tcpSegment { return tcpSegment{flow: t.flow, seq: t.seq + 1, flags: flagRST} }

// isTo tells whether the answer is to what the try has sent. Any host whose packets this one forwards may send something to the client, in anybody's
// name, but knows no sequence numbers.
func (a answer) isTo(t *try) bool {
	switch {
	case a.unreachable:
		return a.seq == t.seq || a.seq == t.seq+1
	case a.flags&flagRST != 0 && !t.opened.IsZero():
		return a.seq == t.theirs
	}
	return a.flags&flagACK != 0 && a.ack == t.seq+1
}

// take handles an answer.
func (w *Watchdog) take(a answer, now time.Time) {
	t := w.tries[a.flow]
	switch {
	case t == nil || !a.isTo(t):
	case a.noPort:
		w.end(t, Refused, now)
	case a.unreachable:
		w.end(t, Unreachable, now)
	case a.flags&flagRST != 0 && t.opened.IsZero():
		w.end(t, Refused, now)
	case a.flags&flagRST != 0:
		w.end(t, Reset, now)
	case a.data && !t.opened.IsZero():
		_ = w.lane.send(t.reset())
		w.end(t, Answered, now)
	case a.flags&flagFIN != 0 && !t.opened.IsZero():
		_ = w.lane.send(t.reset())
		w.end(t, Closed, now)
	case a.flags&(flagSYN|flagACK) == flagSYN|flagACK && t.opened.IsZero():
		t.opened, t.theirs = now, a.seq+1
		_ = w.lane.send(tcpSegment{flow: t.flow, seq: t.seq + 1, ack: a.seq + 1, flags: flagACK})
	}
}

// excuse gives tries the time again for which this process stood still: answers have come that nobody has read.
func (w *Watchdog) excuse(now time.Time) {
	stood := now.Sub(w.ticked)
	first := w.ticked.IsZero()
	if w.ticked = now; first || stood < standstill {
		return
	}
	for _, t := range w.tries {
		t.began = t.began.Add(stood)
		if !t.opened.IsZero() {
			t.opened = t.opened.Add(stood)
		}
	}
}

// expire ends tries that are over, and repeats SYNs.
func (w *Watchdog) expire(now time.Time) {
	w.excuse(now)
	for _, t := range w.tries {
		switch waited := now.Sub(t.began); {
		case !t.opened.IsZero() && now.Sub(t.opened) >= w.times.holdFor:
			_ = w.lane.send(t.reset())
			w.end(t, Answered, now)
		case !t.opened.IsZero():
		case waited >= w.times.answerWithin && !t.began.After(w.overrun):
			w.drop(t, now)
		case waited >= w.times.answerWithin:
			w.end(t, Unanswered, now)
		case waited >= w.times.repeatAfter && !t.again:
			t.again = true
			_ = w.lane.send(t.syn())
		}
	}
}

// drop ends a try whose answer may have been lost on its last way, which says nothing of the frontend.
func (w *Watchdog) drop(t *try, now time.Time) {
	delete(w.tries, t.flow)
	t.of.trying, t.of.due = false, now.Add(w.times.again)
}
