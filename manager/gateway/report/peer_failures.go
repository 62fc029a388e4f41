package report

import (
	"fmt"
	"strings"
	"time"

	"kubelb.k8c.io/core/model"
)

// peerFailures are the ports to which connections fail at other gateways, as their objects say. If the address of such a port moves to this gateway,
// the port counts as failing here until the watchdog has tried it.
type peerFailures map[peerPort]*peerFailure

type peerPort struct {
	gateway string
	model.FrontendKey
}

type peerFailure struct {
	formerFailure
	// atPeer: the gateway was to answer for the address at the last check.
	atPeer bool
	// expires is when the failure is dropped after the gateway has stopped naming it, zero while it names it.
	expires time.Time
}

// moveTimeout is how long an address may take to move here after its gateway has stopped naming the failure: the gateway withdraws it first.
const moveTimeout = 10 * time.Second

// update takes over which failures a gateway names now, and which ones it does not name.
func (p peerFailures) update(gateway string, named map[model.FrontendKey]formerFailure, unnamed unnamedFailures, now time.Time) {
	for port, f := range p {
		_, stillNamed := named[port.FrontendKey]
		switch {
		case port.gateway != gateway || stillNamed:
		case unnamed.mayInclude(f.loadBalancer):
			f.message, f.expires = fmt.Sprintf(unconfirmedAtPeer, gateway), time.Time{}
		case f.expires.IsZero():
			f.expires = now.Add(moveTimeout)
		}
	}
	for key, failure := range named {
		port := peerPort{gateway, key}
		if p[port] == nil {
			p[port] = &peerFailure{}
		}
		p[port].formerFailure, p[port].expires = failure, time.Time{}
	}
}

// atGateway is the beginning of the message of a failure that has moved.
const atGateway = "at gateway "

// takeOver takes over a failure from another gateway, unless the port belongs to another LoadBalancer now, or is known to fail.
func (t *Tries) takeOver(from peerPort, f formerFailure, now time.Time) {
	lb, known := t.owner(from.FrontendKey)
	existing, exists := t.former.failures[from.FrontendKey]
	isKnown := exists && existing.loadBalancer == f.loadBalancer && (isUnconfirmed(f.message) || !isUnconfirmed(existing.message))
	if isKnown || known && lb.String() != f.loadBalancer {
		return
	}
	if !isUnconfirmed(f.message) && !strings.HasPrefix(f.message, atGateway) {
		f.message = fmt.Sprintf("%s%s, which answered for the address before: %s", atGateway, from.gateway, f.message)
	}
	f.moved, f.since = true, now
	t.former.failures[from.FrontendKey] = f
}
