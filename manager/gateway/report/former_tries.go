package report

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
)

// formerTries are the ports to which connections failed when the former process of this gateway wrote its object last. The object names them until the
// watchdog does: a new process has seen nothing yet that is better.
type formerTries struct {
	// failures is nil until the object has been read.
	failures map[model.FrontendKey]formerFailure
	// unnamed are those that the object did not name, until the model tells which ones they may be.
	unnamed unnamedFailures
}

// formerFailure is of another gateway if it has moved here.
type formerFailure struct {
	loadBalancer, message string
	moved                 bool
	// since is when it became this gateway's.
	since time.Time
	// handed is the number of the list that handed it over to the watchdog, if all later lists did so, too; else 0.
	handed uint64
}

// formerFor is how long they are remembered while another gateway answers for their addresses.
const formerFor = 10 * time.Minute

const (
	frontendRecord = "frontend "
	othersFail     = "; %d of its other ports fail, too"
	othersMayFail  = "; %d of its other ports may fail, too"
)

// ofOthers is othersFail, or othersMayFail, at the end of a message. It is said anew.
var ofOthers = regexp.MustCompile(`; \d+ of its other ports (may )?fail, too$`)

// learn reads the object as the former process left it. What is written later is this process's own.
func (p *formerTries) learn(tries *v1alpha1.GatewayTries, now time.Time) {
	if p.failures != nil {
		return
	}
	p.failures, p.unnamed = failuresOf(tries)
	for key, f := range p.failures {
		f.since = now
		p.failures[key] = f
	}
}

// failuresOf are the failing ports that status.tries of a Gateway names, and those that it does not name.
func failuresOf(tries *v1alpha1.GatewayTries) (map[model.FrontendKey]formerFailure, unnamedFailures) {
	failures, unnamed := map[model.FrontendKey]formerFailure{}, unnamedFailures{of: map[string]bool{}}
	if tries == nil {
		return failures, unnamed
	}
	for _, f := range tries.Failures {
		at, err := netip.ParseAddrPort(strings.TrimPrefix(f.Record, frontendRecord+model.TCP.String()+" "))
		if err != nil {
			continue
		}
		message := ofOthers.ReplaceAllString(f.Message, "")
		failures[keyOf(at)] = formerFailure{loadBalancer: f.LoadBalancer, message: message, moved: strings.HasPrefix(message, atGateway) || isDoubt(message)}
		if message != f.Message {
			unnamed.of[f.LoadBalancer] = true
		}
	}
	unnamed.namespaces = tries.Unlisted
	return failures, unnamed
}

// forget forgets what the watchdog has taken over.
func (p *formerTries) forget(listed uint64) {
	for key, f := range p.failures {
		if f.handed != 0 && f.handed <= listed {
			delete(p.failures, key)
		}
	}
}

// keep forgets what cannot be tried here any more, or is of a LoadBalancer that has the port no more. What another gateway answers for may come back in
// a moment.
func (p *formerTries) keep(listed map[model.FrontendKey]bool, owner Owner, elsewhere func(netip.Addr) bool, now time.Time) {
	for key, f := range p.failures {
		lb, known := owner(key)
		isTriedHere := listed[key]
		mayComeBack := elsewhere(key.VIP) && now.Sub(f.since) <= formerFor
		if !isTriedHere && !mayComeBack || known && lb.String() != f.loadBalancer {
			delete(p.failures, key)
		}
	}
}

// keyOf is the frontend of a TCP port.
func keyOf(at netip.AddrPort) model.FrontendKey {
	return model.FrontendKey{VIP: at.Addr(), Protocol: model.TCP, Port: at.Port()}
}
