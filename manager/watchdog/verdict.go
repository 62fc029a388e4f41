package watchdog

import (
	"fmt"
	"slices"
)

// Outcome is what became of a try.
type Outcome uint8

// The outcomes. Only Answered is a frontend that serves.
const (
	// Answered: the connection was there, and stayed for a moment.
	Answered Outcome = iota
	// Unanswered: nothing came back.
	Unanswered
	// Refused: a reset answered the SYN.
	Refused
	// Reset and Closed: the connection was there, and was reset or ended before a byte of data. Endpoints may do so, and a proxy that reaches none does.
	Reset
	Closed
	// Unreachable: an ICMP error came back.
	Unreachable
)

// String says what happens to connections.
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

// Word names the outcome in one word.
func (o Outcome) Word() string {
	return [...]string{Answered: "answered", Unanswered: "unanswered", Refused: "refused", Reset: "reset", Closed: "closed", Unreachable: "unreachable"}[o]
}

const (
	// remembered is how many of a frontend's last tries count. It fails if so many of them did: single packets get lost.
	remembered = 12
	failsAt    = 3
	// wellAfter is how many tries in a row have to be answered until it is well again; where some were answered meanwhile, as one of several endpoints
	// may be what fails, more.
	wellAfter     = 3
	wellAfterSome = 8
)

// history is what became of a frontend's last tries.
type history struct {
	// last are the outcomes, the latest one last.
	last []Outcome
	// failing: it has begun to fail, and is not well again. some: not all tries have failed since.
	failing, some bool
}

// note adds an outcome, and tells whether the frontend has begun to fail by it, or is well again.
func (h *history) note(o Outcome) (changed bool) {
	h.last = append(h.last, o)
	h.last = h.last[max(0, len(h.last)-remembered):]
	row := h.answeredInARow()
	switch {
	case !h.failing:
		h.failing = h.failed() >= failsAt
		h.some = h.failing && slices.Contains(h.last[len(h.last)-failsAt:], Answered)
		return h.failing
	case row >= wellAfterSome || row >= wellAfter && !h.some:
		*h = history{last: []Outcome{Answered}}
		return true
	case o != Answered && len(h.last) > 1 && h.last[len(h.last)-2] == Answered:
		h.some = true
	}
	return false
}

// suspect tells whether a try has failed lately, so that more are to be made soon.
func (h *history) suspect() bool { return h.failed() > 0 }

// answered tells whether the last try was answered, and nothing is wrong.
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

// latest is how the last try failed that did.
func (h *history) latest() Outcome {
	latest := Answered
	for _, o := range h.last {
		if o != Answered {
			latest = o
		}
	}
	return latest
}

// says is what happens to connections. It says the same as long as the same happens, since it is written to the API.
func (h *history) says() string {
	if h.some {
		return fmt.Sprintf("some connections %s", h.latest())
	}
	return fmt.Sprintf("connections %s", h.latest())
}
