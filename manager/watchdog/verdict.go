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
	// Refused: the SYN was answered by a reset.
	Refused
	// Reset and Closed: the connection was established, and reset or closed before a byte of data. Some endpoints do so, and so does a proxy that reaches no
	// endpoint.
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
	// A frontend fails if failsAt of its last remembered tries failed. Single packets get lost.
	remembered = 12
	failsAt    = 3
	// A failing frontend is well again after wellAfter answered tries in a row; after wellAfterSome if only some of its tries failed, since one of
	// several endpoints may fail.
	wellAfter     = 3
	wellAfterSome = 8
)

// history has the outcomes of a frontend's last tries.
type history struct {
	// last are the outcomes, the latest one last.
	last []Outcome
	// failing: the frontend fails, and is not well again yet. some: only some of its tries have failed since.
	failing, some bool
	// since is when the first of the failures among last was noted.
	since time.Time
}

// note adds an outcome, and tells whether failing has changed.
func (h *history) note(o Outcome, now time.Time, failsFor time.Duration) (changed bool) {
	if o != Answered && h.failed() == 0 {
		h.since = now
	}
	h.last = append(h.last, o)
	h.last = h.last[max(0, len(h.last)-remembered):]
	row := h.answeredInARow()
	switch {
	case !h.failing:
		h.failing = h.failed() >= failsAt && now.Sub(h.since) >= failsFor
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

// latest is the outcome of the last failed try, Answered if none failed.
func (h *history) latest() Outcome {
	for _, o := range slices.Backward(h.last) {
		if o != Answered {
			return o
		}
	}
	return Answered
}

// ended tells whether the last try that failed was accepted before.
func (h *history) ended() bool { return h.latest() == Closed || h.latest() == Reset }

// someFail is in a message where some connections are answered.
const someFail = "some connections"

// says is what happens to connections. It says the same as long as the same happens, since it is written to the API.
func (h *history) says() string {
	if h.some {
		return fmt.Sprintf("%s %s", someFail, h.latest())
	}
	return fmt.Sprintf("connections %s", h.latest())
}
