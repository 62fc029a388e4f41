package report

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
)

// formerTries are the ports to which connections failed when the former process of this gateway wrote its object. The object keeps them until the
// watchdog has tried them: a new process does not know that they work.
type formerTries struct {
	// failures is nil until the object has been read.
	failures map[model.FrontendKey]formerFailure
	// unnamed are the failures that the object does not name, until the model shows which ports they may be.
	unnamed unnamedFailures
}

// formerFailure is a failure by the former process. moved: it has moved here from another gateway.
type formerFailure struct {
	loadBalancer, message string
	moved                 bool
	// since is when it became this gateway's.
	since time.Time
	// handedOver is the number of the list that first handed it over to the watchdog. It is 0 after a list without it.
	handedOver uint64
}

// formerLifetime is how long failures are kept while another gateway answers for their addresses.
const formerLifetime = 10 * time.Minute

const (
	frontendRecord      = "frontend "
	othersFailFormat    = "; %d of its other ports fail, too"
	othersMayFailFormat = "; %d of its other ports may fail, too"
)

// othersSuffix matches othersFailFormat or othersMayFailFormat at the end of a message.
var othersSuffix = regexp.MustCompile(`; \d+ of its other ports (may )?fail, too$`)

// read reads the object as the former process has left it, at the first call.
func (p *formerTries) read(tries *v1alpha1.GatewayTries, now time.Time) {
	if p.failures != nil {
		return
	}
	p.failures, p.unnamed = parseFailures(tries)
	for key, f := range p.failures {
		f.since = now
		p.failures[key] = f
	}
}

// parseFailures returns the failing ports that status.tries of a Gateway names, and those that it does not name.
func parseFailures(tries *v1alpha1.GatewayTries) (map[model.FrontendKey]formerFailure, unnamedFailures) {
	failures, unnamed := map[model.FrontendKey]formerFailure{}, unnamedFailures{loadBalancers: map[string]bool{}}
	if tries == nil {
		return failures, unnamed
	}
	for _, f := range tries.Failures {
		at, err := netip.ParseAddrPort(strings.TrimPrefix(f.Record, frontendRecord+model.TCP.String()+" "))
		if err != nil {
			continue
		}
		message := othersSuffix.ReplaceAllString(f.Message, "")
		failures[frontendOf(at)] = formerFailure{loadBalancer: f.LoadBalancer, message: message, moved: strings.HasPrefix(message, atGateway) || isUnconfirmed(message)}
		if message != f.Message {
			unnamed.loadBalancers[f.LoadBalancer] = true
		}
	}
	unnamed.namespaces = tries.Unlisted
	return failures, unnamed
}

// removeListed drops the failures that the watchdog has taken over.
func (p *formerTries) removeListed(listed uint64) {
	for key, f := range p.failures {
		if f.handedOver != 0 && f.handedOver <= listed {
			delete(p.failures, key)
		}
	}
}

// removeObsolete drops failures that cannot be tried here any more, or whose port belongs to another LoadBalancer now. It keeps those of other
// gateways for a while: their addresses may come back.
func (p *formerTries) removeObsolete(listed map[model.FrontendKey]bool, owner Owner, elsewhere func(netip.Addr) bool, now time.Time) {
	for key, f := range p.failures {
		lb, known := owner(key)
		isTriedHere := listed[key]
		mayComeBack := elsewhere(key.VIP) && now.Sub(f.since) <= formerLifetime
		if !isTriedHere && !mayComeBack || known && lb.String() != f.loadBalancer {
			delete(p.failures, key)
		}
	}
}

// frontendOf returns the frontend of a TCP port.
func frontendOf(at netip.AddrPort) model.FrontendKey {
	return model.FrontendKey{VIP: at.Addr(), Protocol: model.TCP, Port: at.Port()}
}
