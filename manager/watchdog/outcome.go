package watchdog

import (
	"fmt"
	"slices"
	"time"
)

// Outcome is the result of a try.
type Outcome uint8

// The outcomes. All but Answered are failures.
const (
	// Answered: the connection was established, and stayed so or brought data.
	Answered Outcome = iota
	// Unanswered: nothing came back.
	Unanswered
	// Refused: a reset answered the SYN.
	Refused
	// Reset and Closed: the connection was established, and reset or closed before a byte of data. Some endpoints do so, and so does a proxy that
	// reaches no endpoint.
	Reset
	Closed
	// Unreachable: an ICMP error came back.
	Unreachable
)

// String returns what happens to connections.
func (o Outcome) String() string {
	switch o {
	case Answered:
		return "are answered"
	case Unanswered:
		return "get no answer"
	case Refused:
		return "are refused"
	case Reset:
		return "are accepted, and then reset"
	case Closed:
		return "are accepted, and then ended"
	case Unreachable:
		return "get an ICMP error"
	}
	return fmt.Sprintf("outcome-%d", uint8(o))
}

// Word returns the outcome in one word.
func (o Outcome) Word() string {
	return [...]string{Answered: "answered", Unanswered: "unanswered", Refused: "refused", Reset: "reset", Closed: "closed", Unreachable: "unreachable"}[o]
}

const (
	// A frontend fails if failsAt of its last historyLength tries failed. Single packets get lost.
	historyLength = 12
	failsAt       = 3
	// A failing frontend works again after recoveredAfter answered tries in a row. If only some of its tries failed, it needs recoveredAfterSome,
	// since one of several endpoints may fail.
	recoveredAfter     = 3
	recoveredAfterSome = 8
)

// history has the outcomes of a frontend's last tries.
type history struct {
	// last are the outcomes, the latest one last.
	last []Outcome
	// failing: the frontend fails, and has not recovered yet. some: only some of its tries have failed since.
	failing, some bool
	// since is the time of the first failure among last.
	since time.Time
}

// add adds an outcome, and returns whether failing has changed.
func (h *history) add(o Outcome, now time.Time, failsFor time.Duration) (changed bool) {
	if o != Answered && h.failed() == 0 {
		h.since = now
	}
	h.last = append(h.last, o)
	h.last = h.last[max(0, len(h.last)-historyLength):]
	row := h.answeredInARow()
	switch {
	case !h.failing:
		h.failing = h.failed() >= failsAt && now.Sub(h.since) >= failsFor
		h.some = h.failing && slices.Contains(h.last[len(h.last)-failsAt:], Answered)
		return h.failing
	case row >= recoveredAfterSome || row >= recoveredAfter && !h.some:
		*h = history{last: []Outcome{Answered}}
		return true
	case o != Answered && len(h.last) > 1 && h.last[len(h.last)-2] == Answered:
		h.some = true
	}
	return false
}

// answered reports whether the last try was answered, and the frontend does not fail.
func (h *history) answered() bool {
	return !h.failing && len(h.last) > 0 && h.last[len(h.last)-1] == Answered
}

func (h *history) failed() (n int) {
	for _, o := range h.last {
		if o != Answered {
			n++
		}
	}
	return n
}

func (h *history) answeredInARow() (n int) {
	for i := len(h.last) - 1; i >= 0 && h.last[i] == Answered; i-- {
		n++
	}
	return n
}

// latestFailure returns the outcome of the last failed try, Answered if none failed.
func (h *history) latestFailure() Outcome {
	for _, o := range slices.Backward(h.last) {
		if o != Answered {
			return o
		}
	}
	return Answered
}

// endedLast reports whether the last failed try was accepted first.
func (h *history) endedLast() bool { return h.latestFailure() == Closed || h.latestFailure() == Reset }

// someFail is in messages of frontends that answer some connections. The next process reads it.
const someFail = "some connections"

// describe returns what happens to connections. The text does not change as long as the same happens, since it is written to the API.
func (h *history) describe() string {
	if h.some {
		return fmt.Sprintf("%s %s", someFail, h.latestFailure())
	}
	return fmt.Sprintf("connections %s", h.latestFailure())
}
