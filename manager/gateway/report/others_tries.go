package report

import (
	"fmt"
	"strings"
	"time"

	"kubelb.k8c.io/core/model"
)

// othersTries are the ports to which connections fail at other gateways, as their objects say. If the address of such a port moves to this gateway, the
// port fails here until the watchdog has tried it: nobody has seen that it is well.
type othersTries map[othersPort]*othersFailure

type othersPort struct {
	gateway string
	model.FrontendKey
}

type othersFailure struct {
	formerFailure
	// theirs: the gateway was to answer for the address when that was looked at last.
	theirs bool
	// until is how long it is remembered after the gateway has ceased to name it, zero while it names it.
	until time.Time
}

// movesWithin is how long an address may take to get here after its gateway has ceased to name the failure, since it sees first that it is to let go.
const movesWithin = 10 * time.Second

// learn takes over which failures a gateway names now, and which ones it does not name.
func (o othersTries) learn(gateway string, named map[model.FrontendKey]formerFailure, unnamed unnamedFailures, now time.Time) {
	for port, f := range o {
		_, is := named[port.FrontendKey]
		switch {
		case port.gateway != gateway || is:
		case unnamed.mayInclude(f.loadBalancer):
			f.message, f.until = fmt.Sprintf(doubtOf, gateway), time.Time{}
		case f.until.IsZero():
			f.until = now.Add(movesWithin)
		}
	}
	for key, failure := range named {
		port := othersPort{gateway, key}
		if o[port] == nil {
			o[port] = &othersFailure{}
		}
		o[port].formerFailure, o[port].until = failure, time.Time{}
	}
}

// atGateway is how the message of a failure begins that has moved.
const atGateway = "at gateway "

// take takes over a failure from another gateway, unless the port is another LoadBalancer's by now, or is known to fail.
func (t *Tries) take(from othersPort, f formerFailure, now time.Time) {
	lb, known := t.owner(from.FrontendKey)
	is, has := t.former.failures[from.FrontendKey]
	isKnown := has && is.loadBalancer == f.loadBalancer && (isDoubt(f.message) || !isDoubt(is.message))
	if isKnown || known && lb.String() != f.loadBalancer {
		return
	}
	if !isDoubt(f.message) && !strings.HasPrefix(f.message, atGateway) {
		f.message = fmt.Sprintf("%s%s, which answered for the address before: %s", atGateway, from.gateway, f.message)
	}
	f.moved, f.since = true, now
	t.former.failures[from.FrontendKey] = f
}
