package report

import (
	"fmt"
	"net/netip"
	"time"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/watchdog"
)

// Answers is which gateway answers for an address, as far as this gateway knows.
type Answers interface {
	// AnswererOf is the gateway that is to answer for an address, empty for none. Where nobody is elected it may be several: this gateway counts first,
	// and then the other one.
	AnswererOf(address netip.Addr, other string) string
	// IsAnothers tells whether another gateway is to answer for an address, instead of this one.
	IsAnothers(address netip.Addr) bool
}

// Owner is the LoadBalancer that a frontend is served for, as driver.Model has it.
type Owner func(model.FrontendKey) (model.ObjectName, bool)

// Tries are the ports to which connections fail: by the watchdog, or as the former process of this gateway, or another gateway, said before.
type Tries struct {
	self    string
	watched bool
	owner   Owner
	answers Answers
	// tried is the watchdog's last report.
	tried  watchdog.Report
	former formerTries
	others othersTries
}

// NewTries returns those of the gateway. watched says whether there is a watchdog.
func NewTries(self string, watched bool, owner Owner, answers Answers) *Tries {
	return &Tries{self: self, watched: watched, owner: owner, answers: answers, others: othersTries{}}
}

// Learn takes over what a gateway's object says of its tries. This gateway's own object is that of its former process when it is read first.
func (t *Tries) Learn(gateway string, tries *v1alpha1.GatewayTries, now time.Time) {
	switch {
	case gateway == t.self:
		t.former.learn(tries, now)
	case t.watched:
		t.others.learn(gateway, tries, now)
	}
}

// Take takes over a report of the watchdog.
func (t *Tries) Take(r watchdog.Report) {
	t.tried = r
	t.former.forget(r)
}

// List returns the frontends that can be tried from the addresses, but for those of other gateways. served tells whether clients reach a frontend here.
// While they do not, what is known of it stays. read says whether the model has been read.
func (t *Tries) List(s model.Snapshot, from []netip.Addr, served func(model.FrontendKey) bool, read bool, now time.Time) []watchdog.Frontend {
	elsewhere := t.elsewhere()
	t.inherit(now)
	list := triable(s, from, func(f model.Frontend) bool { return !elsewhere(f.VIP) })
	for i, f := range list {
		key := keyOf(f.AddrPort)
		list[i].Paused, list[i].Former = !served(key), t.failedBefore(key)
		list[i].Moved = list[i].Former != "" && t.former.failures[key].moved
	}
	if read {
		t.former.keep(list, elsewhere, now)
	}
	return list
}

// Failing are the frontends to which connections fail by the last report, or failed before and were not tried since. Without those that were deleted, or
// have moved to another gateway.
func (t *Tries) Failing(now time.Time) map[model.FrontendKey]watchdog.Failure {
	failing, elsewhere := map[model.FrontendKey]watchdog.Failure{}, t.elsewhere()
	t.inherit(now)
	for key := range t.former.failures {
		if message := t.failedBefore(key); message != "" && !elsewhere(key.VIP) {
			failing[key] = watchdog.Failure{AddrPort: netip.AddrPortFrom(key.VIP, key.Port), Message: message}
		}
	}
	for _, f := range t.tried.Failures {
		if _, known := t.owner(keyOf(f.AddrPort)); known && !elsewhere(f.Addr()) {
			failing[keyOf(f.AddrPort)] = f
		}
	}
	return failing
}

// Status is status.tries of the Gateway object, nil if tries are turned off.
func (t *Tries) Status(failing map[model.FrontendKey]watchdog.Failure) *v1alpha1.GatewayTries {
	if !t.watched {
		return nil
	}
	s := &v1alpha1.GatewayTries{Answered: int32(t.tried.Answered), Untried: int32(t.tried.Untried), Problem: plain.Message(t.tried.Problem, 1024)}
	fails, of := map[string]driver.Failure{}, map[model.ObjectName]int{}
	for key := range failing {
		owner, _ := t.owner(key)
		of[owner]++
	}
	for key, f := range failing {
		owner, _ := t.owner(key)
		message := f.Message
		if others := of[owner] - 1; others > 0 { // of each LoadBalancer one is named
			message += fmt.Sprintf(othersFail, others)
		}
		fails[frontendRecord+key.String()] = driver.Failure{Owner: owner.String(), Message: message}
	}
	s.Failing = int32(len(fails))
	s.Failures, s.Unlisted = List(fails)
	return s
}

// NotOfNodes is how many of these fail though their nodes answer the gateway itself.
func NotOfNodes(failing map[model.FrontendKey]watchdog.Failure) (n int) {
	for _, f := range failing {
		if f.NodesAnswer {
			n++
		}
	}
	return n
}

// failedBefore is what the former process, or the former gateway of the address, said of a frontend, empty for nothing. A LoadBalancer that has the
// address now and did not then is another one.
func (t *Tries) failedBefore(key model.FrontendKey) string {
	before := t.former.failures[key]
	if owner, known := t.owner(key); !known || owner.String() != before.loadBalancer {
		return ""
	}
	return before.message
}

// elsewhere returns whether another gateway is to answer for an address. It remembers the answers.
func (t *Tries) elsewhere() func(netip.Addr) bool {
	known := map[netip.Addr]bool{}
	return func(address netip.Addr) bool {
		is, has := known[address]
		if !has {
			is = t.answers.IsAnothers(address)
			known[address] = is
		}
		return is
	}
}

// inherit takes over the failures of ports whose addresses have moved here from gateways that name them.
func (t *Tries) inherit(now time.Time) {
	if t.former.failures == nil {
		return // its own object was not read yet
	}
	for port, f := range t.others {
		switch answers := t.answers.AnswererOf(port.VIP, port.gateway); {
		case !f.until.IsZero() && now.After(f.until):
			delete(t.others, port)
		case answers == t.self && f.theirs:
			t.former.take(port, f.formerFailure)
			delete(t.others, port)
		case answers != "":
			f.theirs = answers == port.gateway
		}
	}
}

// triable returns the frontends that can be tried from the addresses: package watchdog says which ones cannot.
func triable(s model.Snapshot, from []netip.Addr, served func(model.Frontend) bool) (list []watchdog.Frontend) {
	pools := make(map[model.PoolID][]model.Endpoint, len(s.Pools))
	for _, p := range s.Pools {
		pools[p.ID] = p.Endpoints
	}
	for _, f := range s.Frontends {
		if f.Protocol != model.TCP || f.Forwarding == model.Direct || !mayConnect(f, from) || !served(f) {
			continue
		}
		var endpoints []netip.AddrPort
		for _, e := range pools[f.Pool] {
			if e.State == model.Active {
				endpoints = append(endpoints, netip.AddrPortFrom(e.Address, f.TargetPort))
			}
		}
		if len(endpoints) == 0 {
			continue // connections are refused
		}
		list = append(list, watchdog.Frontend{AddrPort: netip.AddrPortFrom(f.VIP, f.Port), Tenant: f.Tenant, KeepsClient: f.Forwarding == model.Transparent,
			Limited: f.MaxConnections > 0 || f.MaxNewPerSecond > 0, Endpoints: endpoints})
	}
	return list
}

// mayConnect tells whether the frontend's source ranges let one of the addresses in.
func mayConnect(f model.Frontend, from []netip.Addr) bool {
	if !f.Restricted {
		return true
	}
	for _, source := range from {
		for _, r := range f.SourceRanges {
			if r.Contains(source) {
				return true
			}
		}
	}
	return false
}
