package report

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/watchdog"
)

// formerTries are the ports to which connections failed when the former process of this gateway wrote its object last. The object names them until the
// watchdog does: a new process has seen nothing yet that is better.
type formerTries struct {
	// failures is nil until the object has been read.
	failures map[model.FrontendKey]formerFailure
	at       time.Time
}

// formerFailure is of another gateway if it has moved here.
type formerFailure struct {
	loadBalancer, message string
	moved                 bool
}

// formerFor is how long they are remembered while another gateway answers for their addresses.
const formerFor = 10 * time.Minute

const (
	frontendRecord = "frontend "
	othersFail     = "; %d of its other ports fail, too"
)

// ofOthers is othersFail at the end of a message. It is said anew.
var ofOthers = regexp.MustCompile(`; \d+ of its other ports fail, too$`)

// learn reads the object as the former process left it. What is written later is this process's own.
func (p *formerTries) learn(tries *v1alpha1.GatewayTries, now time.Time) {
	if p.failures != nil {
		return
	}
	p.failures, p.at = failuresOf(tries), now
}

// failuresOf are the failing ports that status.tries of a Gateway names.
func failuresOf(tries *v1alpha1.GatewayTries) map[model.FrontendKey]formerFailure {
	failures := map[model.FrontendKey]formerFailure{}
	if tries == nil {
		return failures
	}
	for _, f := range tries.Failures {
		at, err := netip.ParseAddrPort(strings.TrimPrefix(f.Record, frontendRecord+model.TCP.String()+" "))
		if err == nil {
			failures[keyOf(at)] = formerFailure{loadBalancer: f.LoadBalancer, message: ofOthers.ReplaceAllString(f.Message, "")}
		}
	}
	return failures
}

// forget forgets what the watchdog knows by now.
func (p *formerTries) forget(r watchdog.Report) {
	for _, f := range r.Failures {
		delete(p.failures, keyOf(f.AddrPort))
	}
}

// keep forgets what cannot be tried here any more. What another gateway answers for may come back in a moment.
func (p *formerTries) keep(list []watchdog.Frontend, elsewhere func(netip.Addr) bool, now time.Time) {
	listed := make(map[model.FrontendKey]bool, len(list))
	for _, f := range list {
		listed[keyOf(f.AddrPort)] = true
	}
	for key := range p.failures {
		if !listed[key] && (!elsewhere(key.VIP) || now.Sub(p.at) > formerFor) {
			delete(p.failures, key)
		}
	}
}

// keyOf is the frontend of a TCP port.
func keyOf(at netip.AddrPort) model.FrontendKey {
	return model.FrontendKey{VIP: at.Addr(), Protocol: model.TCP, Port: at.Port()}
}
