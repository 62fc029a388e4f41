package watchdog

import (
	"fmt"
	"strings"

	"kubelb.k8c.io/core/phrase"
)

// Parts of messages about nodes. The next process reads them.
const (
	nodesAnswer     = "answer the gateway itself"
	nodesRefuse     = "refuse the gateway itself"
	nodesNotReached = "the gateway itself does not reach "
)

// nodesFail reports whether a message says that the nodes do not answer the gateway itself.
func nodesFail(message string) bool {
	return strings.Contains(message, nodesRefuse) || strings.Contains(message, nodesNotReached)
}

// nodesAnswer reports whether the endpoints that were asked answer the host itself.
func (state *frontendState) nodesAnswer() bool {
	if state.former != "" {
		return !state.Moved && strings.Contains(state.former, nodesAnswer)
	}
	return state.endpoints.count > 0 && len(state.endpoints.silent) == 0
}

// failure returns the message of a failing frontend.
func (w *Watchdog) failure(state *frontendState) (string, bool) {
	result := state.endpoints
	switch {
	case state.former != "":
		return state.former, true
	case !state.history.failing, !w.isConclusive(state):
		return "", false
	case result.at.IsZero() && (state.history.endedLast() || state.requested), state.endsItself():
		return "", false // the endpoints were not asked yet, or end connections themselves
	}
	message := state.history.describe()
	switch {
	case result.count == 0:
	case len(result.silent) == 0 && result.count < len(state.Endpoints):
		message += fmt.Sprintf("; %d of its nodes were asked, and %s", result.count, nodesAnswer)
	case len(result.silent) == 0:
		message += "; its nodes " + nodesAnswer + ", so the reason is the gateway's dataplane, or a firewall of the gateway's host"
	case result.refused:
		message += "; its nodes " + nodesRefuse + ", too, as they do if the Service has no ready pod"
	default:
		message += "; " + nodesNotReached + phrase.Few(result.silent, ", ")
	}
	if state.Limited {
		message += "; it has a limit of connections, which may be the reason"
	}
	return message, true
}
