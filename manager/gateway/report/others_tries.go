package report

import (
	"fmt"
	"strings"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
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

// learn takes over which failures a gateway names now.
func (o othersTries) learn(gateway string, tries *v1alpha1.GatewayTries, now time.Time) {
	named := failuresOf(tries)
	for port, f := range o {
		if _, is := named[port.FrontendKey]; port.gateway == gateway && !is && f.until.IsZero() {
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

// take takes over a failure from another gateway, unless this one has found one itself.
func (p *formerTries) take(from othersPort, f formerFailure) {
	if _, has := p.failures[from.FrontendKey]; has {
		return
	}
	if f.moved = true; !strings.HasPrefix(f.message, atGateway) {
		f.message = fmt.Sprintf("%s%s, which answered for the address before: %s", atGateway, from.gateway, f.message)
	}
	p.failures[from.FrontendKey] = f
}
