package gateway

import (
	"fmt"
	"net/netip"
	"slices"
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

// inherit takes over the failures of ports whose addresses have moved here from gateways that name them.
func (g *Gateway) inherit(now time.Time) {
	if g.former.failures == nil {
		return // its own object was not read yet
	}
	for port, f := range g.others {
		switch answers := g.answererOf(port.VIP, port.gateway); {
		case !f.until.IsZero() && now.After(f.until):
			delete(g.others, port)
		case answers == g.options.Name && f.theirs:
			g.former.take(port, f.formerFailure)
			delete(g.others, port)
		case answers != "":
			f.theirs = answers == port.gateway
		}
	}
}

// answererOf is the gateway that is to answer for an address, as far as this one knows, empty for none. Where nobody is elected it may be several: this
// one counts, and then the other one.
func (g *Gateway) answererOf(address netip.Addr, other string) string {
	serves := g.selection.ServingAddress(address)
	if g.answering.elects {
		return g.answering.view.Winner(address, serves)
	}
	names := []string{g.options.Name, other}
	if i := slices.IndexFunc(names, orAll(serves)); i >= 0 {
		return names[i]
	}
	return ""
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

// triesChanged takes over what a gateway says of its tries.
func triesChanged(o *v1alpha1.Gateway, gone bool) event {
	return func(g *Gateway) {
		tries := o.Status.Tries
		if gone {
			tries = nil
		}
		switch {
		case o.Name == g.options.Name:
			g.former.learn(tries, time.Now())
		case g.watchdog != nil:
			g.others.learn(o.Name, tries, time.Now())
		}
	}
}

// sameTries tells whether two versions of a Gateway name the same failing ports.
func sameTries(a, b *v1alpha1.Gateway) bool {
	of := func(g *v1alpha1.Gateway) []v1alpha1.GatewayFailure {
		if g.Status.Tries == nil {
			return nil
		}
		return g.Status.Tries.Failures
	}
	return slices.Equal(of(a), of(b))
}
