package watchdog

import (
	"fmt"
	"strings"

	"kubelb.k8c.io/core/phrase"
)

// What messages say of nodes. A later process reads it.
const (
	nodesAnswer     = "answer the gateway itself"
	nodesRefuse     = "refuse the gateway itself"
	nodesNotReached = "the gateway itself does not reach "
)

// nodesFail tells whether a failure's message says that the nodes do not answer the gateway, either.
func nodesFail(message string) bool {
	return strings.Contains(message, nodesRefuse) || strings.Contains(message, nodesNotReached)
}

// nodesAnswer tells whether the endpoints that were asked answer the host itself.
func (is *watched) nodesAnswer() bool {
	if is.former != "" {
		return !is.Moved && strings.Contains(is.former, nodesAnswer)
	}
	return is.endpoints.asked > 0 && len(is.endpoints.silent) == 0
}

// failure is what is wrong with a frontend.
func (w *Watchdog) failure(is *watched) (string, bool) {
	h := is.endpoints
	switch {
	case is.former != "":
		return is.former, true
	case !is.history.failing, !w.maySay(is):
		return "", false
	case h.at.IsZero() && (is.history.ended() || is.asking), is.endsItself():
		return "", false // its endpoints are still to be asked, or do so, too
	}
	message := is.history.says()
	switch {
	case h.asked == 0:
	case len(h.silent) == 0 && h.asked < len(is.Endpoints):
		message += fmt.Sprintf("; of its nodes %d were asked, which %s", h.asked, nodesAnswer)
	case len(h.silent) == 0:
		message += "; its nodes " + nodesAnswer + ", so that its dataplane, or a firewall of its host, is the reason"
	case h.refused:
		message += "; its nodes " + nodesRefuse + ", too, as they do if the Service has no ready pod"
	default:
		message += "; " + nodesNotReached + phrase.Few(h.silent, ", ")
	}
	if is.Limited {
		message += "; it has a limit of connections, which may be the reason"
	}
	return message, true
}
