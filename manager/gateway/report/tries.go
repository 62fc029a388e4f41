package report

import (
	"fmt"
	"net/netip"
	"slices"
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
	BelongsToPeer(address netip.Addr) bool
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
	// unnamed are those of other gateways, by gateway. looked is when ports were looked for last that may be among unnamed failures.
	unnamed map[string]unnamedFailures
	looked  time.Time
	// lists is the number of the last list that handed a failure over to the watchdog.
	lists uint64
}

// NewTries returns those of the gateway. watched says whether there is a watchdog.
func NewTries(self string, watched bool, owner Owner, answers Answers) *Tries {
	return &Tries{self: self, watched: watched, owner: owner, answers: answers, others: othersTries{}, unnamed: map[string]unnamedFailures{}}
}

// Learn takes over what a gateway's object says of its tries. This gateway's own object is that of its former process when it is read first.
func (t *Tries) Learn(gateway string, tries *v1alpha1.GatewayTries, now time.Time) {
	switch {
	case gateway == t.self:
		t.former.learn(tries, now)
	case t.watched:
		named, unnamed := failuresOf(tries)
		t.others.learn(gateway, named, unnamed, now)
		if delete(t.unnamed, gateway); !unnamed.none() {
			t.unnamed[gateway], t.looked = unnamed, time.Time{}
		}
	}
}

// Take takes over a report of the watchdog.
func (t *Tries) Take(r watchdog.Report) {
	t.tried = r
	t.former.forget(r.Listed)
}

// List returns the frontends that can be tried from the addresses, but for those of other gateways. served tells whether clients reach a frontend here.
// While they do not, what is known of it stays. read says whether the model has been read.
func (t *Tries) List(s model.Snapshot, from []netip.Addr, served func(model.FrontendKey) bool, read bool, now time.Time) watchdog.List {
	elsewhere := t.elsewhere()
	t.look(s, from, read, now)
	t.inherit(now)
	list := triable(s, from, func(f model.Frontend) bool { return !elsewhere(f.VIP) })
	listed := make(map[model.FrontendKey]bool, len(list))
	for i, f := range list {
		key := keyOf(f.AddrPort)
		listed[key] = true
		list[i].Paused, list[i].Former = !served(key), t.failedBefore(key)
		list[i].Moved, list[i].Unconfirmed = list[i].Former != "" && t.former.failures[key].moved, isDoubt(list[i].Former)
	}
	if read {
		t.former.keep(listed, t.owner, elsewhere, now)
	}
	return watchdog.List{Frontends: list, Number: t.handOver(listed)}
}

// handOver notes which failures a list hands over to the watchdog, and returns the list's number.
func (t *Tries) handOver(listed map[model.FrontendKey]bool) uint64 {
	next := t.lists + 1
	for key, f := range t.former.failures {
		if !listed[key] || t.failedBefore(key) == "" {
			f.handed = 0
		} else if t.lists = next; f.handed == 0 {
			f.handed = next
		}
		t.former.failures[key] = f
	}
	return t.lists
}

// Failing are the frontends to which connections fail by the last report, or failed before and were not tried since. Without those that were deleted, or
// have moved to another gateway.
func (t *Tries) Failing(now time.Time) map[model.FrontendKey]watchdog.Failure {
	failing, elsewhere := map[model.FrontendKey]watchdog.Failure{}, t.elsewhere()
	t.inherit(now)
	for key := range t.former.failures {
		if message := t.failedBefore(key); message != "" && !elsewhere(key.VIP) {
			failing[key] = watchdog.Failure{AddrPort: netip.AddrPortFrom(key.VIP, key.Port), Message: message, Unconfirmed: isDoubt(message)}
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
	fails, of := map[string]driver.Failure{}, map[model.ObjectName]portsOf{}
	for key, f := range failing {
		owner, _ := t.owner(key)
		of[owner] = of[owner].and(f)
	}
	for key, f := range failing {
		owner, _ := t.owner(key)
		if ports := of[owner]; !f.Unconfirmed || ports.fail == 0 { // what is known to fail says more
			fails[frontendRecord+key.String()] = driver.Failure{Owner: owner.String(), Message: ports.named(f)}
		}
		if !f.Unconfirmed {
			s.Failing++
		}
	}
	s.Failures, s.Unlisted = List(fails)
	if failing != nil { // clients may reach this gateway
		s.Unlisted = allNamespaces(s.Unlisted, t.former.unnamed.namespaces)
	}
	return s
}

// portsOf counts the ports of a LoadBalancer that fail, and those that may fail.
type portsOf struct{ fail, mayFail int }

func (p portsOf) and(f watchdog.Failure) portsOf {
	if f.Unconfirmed {
		return portsOf{p.fail, p.mayFail + 1}
	}
	return portsOf{p.fail + 1, p.mayFail}
}

// named is the message of a port, with how many others there are: of each LoadBalancer one is named.
func (p portsOf) named(f watchdog.Failure) string {
	others, format := p.fail+p.mayFail-1, othersFail
	if others == 0 {
		return f.Message
	}
	if p.mayFail > 0 {
		format = othersMayFail
	}
	end := fmt.Sprintf(format, others) // a later process reads it, however long the message is
	return plain.Message(f.Message, maxMessage-len(end)) + end
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
			is = t.answers.BelongsToPeer(address)
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
			t.take(port, f.formerFailure, now)
			f.theirs = false
		case answers != "":
			f.theirs = answers == port.gateway
		}
	}
}

// triable returns the frontends that can be tried from the addresses: package watchdog says which ones cannot.
func triable(s model.Snapshot, from []netip.Addr, served func(model.Frontend) bool) (list []watchdog.Frontend) {
	may := triabilityOf(s, from)
	for _, f := range s.Frontends {
		if !may.is(f) || !served(f) {
			continue
		}
		var endpoints []netip.AddrPort
		for _, e := range may.pools[f.Pool] {
			if e.State == model.Active {
				endpoints = append(endpoints, netip.AddrPortFrom(e.Address, f.TargetPort))
			}
		}
		list = append(list, watchdog.Frontend{AddrPort: netip.AddrPortFrom(f.VIP, f.Port), Tenant: f.Tenant, KeepsClientAddress: f.Forwarding == model.Transparent,
			Limited: f.MaxConnections > 0 || f.MaxNewPerSecond > 0, Endpoints: endpoints})
	}
	return list
}

// triability tells which frontends can be tried from some addresses.
type triability struct {
	from  []netip.Addr
	pools map[model.PoolID][]model.Endpoint
}

func triabilityOf(s model.Snapshot, from []netip.Addr) triability {
	may := triability{from, make(map[model.PoolID][]model.Endpoint, len(s.Pools))}
	for _, p := range s.Pools {
		may.pools[p.ID] = p.Endpoints
	}
	return may
}

// is tells whether it can. Without an endpoint connections are refused.
func (t triability) is(f model.Frontend) bool {
	return f.Protocol == model.TCP && f.Forwarding != model.Direct && mayConnect(f, t.from) &&
		slices.ContainsFunc(t.pools[f.Pool], func(e model.Endpoint) bool { return e.State == model.Active })
}

// mayConnect tells whether the frontend's source ranges let in one of the addresses, which is of the same family.
func mayConnect(f model.Frontend, from []netip.Addr) bool {
	return slices.ContainsFunc(from, func(source netip.Addr) bool {
		return source.Is4() == f.VIP.Is4() &&
			(!f.Restricted || slices.ContainsFunc(f.SourceRanges, func(r netip.Prefix) bool { return r.Contains(source) }))
	})
}
