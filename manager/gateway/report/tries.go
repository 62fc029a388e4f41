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

// Answerers says which gateway answers for an address, as far as this gateway knows.
type Answerers interface {
	// AnswererOf returns the gateway that is to answer for an address, empty for none. If gateways do not elect, several may answer: then it is this
	// gateway if it serves the address, else the other one.
	AnswererOf(address netip.Addr, other string) string
	// BelongsToPeer reports whether another gateway is to answer for an address, and this one is not.
	BelongsToPeer(address netip.Addr) bool
}

// Owner returns the LoadBalancer of a frontend, as driver.Model does.
type Owner func(model.FrontendKey) (model.ObjectName, bool)

// Tries knows the ports to which connections fail: as the watchdog reports them, and as the former process of this gateway or another gateway
// reported them before.
type Tries struct {
	self      string
	enabled   bool
	owner     Owner
	answerers Answerers
	// report is the watchdog's last report.
	report  watchdog.Report
	former  formerTries
	ofPeers peerFailures
	// unnamed are the unnamed failures of other gateways, by gateway. lastLookup is the last search for ports that may be among them.
	unnamed    map[string]unnamedFailures
	lastLookup time.Time
	// listNumber is the number of the last list that handed a failure over to the watchdog.
	listNumber uint64
}

// NewTries returns the tries of the gateway. enabled says whether there is a watchdog.
func NewTries(self string, enabled bool, owner Owner, answerers Answerers) *Tries {
	return &Tries{self: self, enabled: enabled, owner: owner, answerers: answerers, ofPeers: peerFailures{}, unnamed: map[string]unnamedFailures{}}
}

// ReadStatus takes over the tries of a Gateway object. The first read of this gateway's own object shows what its former process left.
func (t *Tries) ReadStatus(gateway string, tries *v1alpha1.GatewayTries, now time.Time) {
	switch {
	case gateway == t.self:
		t.former.read(tries, now)
	case t.enabled:
		named, unnamed := parseFailures(tries)
		t.ofPeers.update(gateway, named, unnamed, now)
		if delete(t.unnamed, gateway); !unnamed.isEmpty() {
			t.unnamed[gateway], t.lastLookup = unnamed, time.Time{}
		}
	}
}

// SetReport takes over a report of the watchdog.
func (t *Tries) SetReport(r watchdog.Report) {
	t.report = r
	t.former.removeListed(r.Listed)
}

// List returns the frontends that can be tried from the addresses, without those of other gateways. served reports whether clients reach a frontend
// here. While they do not, its failure stays. read says whether the model has been read.
func (t *Tries) List(s model.Snapshot, from []netip.Addr, served func(model.FrontendKey) bool, read bool, now time.Time) watchdog.List {
	elsewhere := t.elsewhere()
	t.findUnconfirmed(s, from, read, now)
	t.takeOverMoved(now)
	list := triable(s, from, func(f model.Frontend) bool { return !elsewhere(f.VIP) })
	listed := make(map[model.FrontendKey]bool, len(list))
	for i, f := range list {
		key := frontendOf(f.AddrPort)
		listed[key] = true
		list[i].Paused, list[i].Former = !served(key), t.formerMessage(key)
		list[i].Moved, list[i].Unconfirmed = list[i].Former != "" && t.former.failures[key].moved, isUnconfirmed(list[i].Former)
	}
	if read {
		t.former.removeObsolete(listed, t.owner, elsewhere, now)
	}
	return watchdog.List{Frontends: list, Number: t.handOver(listed)}
}

// handOver notes which failures a list hands over to the watchdog, and returns the number of the list.
func (t *Tries) handOver(listed map[model.FrontendKey]bool) uint64 {
	next := t.listNumber + 1
	for key, f := range t.former.failures {
		if !listed[key] || t.formerMessage(key) == "" {
			f.handedOver = 0
		} else if t.listNumber = next; f.handedOver == 0 {
			f.handedOver = next
		}
		t.former.failures[key] = f
	}
	return t.listNumber
}

// Failing returns the frontends to which connections fail by the last report, or failed before and were not tried since. It leaves out deleted
// frontends, and those that have moved to another gateway.
func (t *Tries) Failing(now time.Time) map[model.FrontendKey]watchdog.Failure {
	failing, elsewhere := map[model.FrontendKey]watchdog.Failure{}, t.elsewhere()
	t.takeOverMoved(now)
	for key := range t.former.failures {
		if message := t.formerMessage(key); message != "" && !elsewhere(key.VIP) {
			failing[key] = watchdog.Failure{AddrPort: netip.AddrPortFrom(key.VIP, key.Port), Message: message, Unconfirmed: isUnconfirmed(message)}
		}
	}
	for _, f := range t.report.Failures {
		if _, known := t.owner(frontendOf(f.AddrPort)); known && !elsewhere(f.Addr()) {
			failing[frontendOf(f.AddrPort)] = f
		}
	}
	return failing
}

// Status returns status.tries of the Gateway object, nil if tries are turned off.
func (t *Tries) Status(failing map[model.FrontendKey]watchdog.Failure) *v1alpha1.GatewayTries {
	if !t.enabled {
		return nil
	}
	s := &v1alpha1.GatewayTries{Answered: int32(t.report.Answered), Untried: int32(t.report.Untried), Problem: plain.Message(t.report.Problem, 1024)}
	fails, ports := map[string]driver.Failure{}, map[model.ObjectName]portCount{}
	for key, f := range failing {
		owner, _ := t.owner(key)
		ports[owner] = ports[owner].add(f)
	}
	for key, f := range failing {
		owner, _ := t.owner(key)
		if ports := ports[owner]; !f.Unconfirmed || ports.failing == 0 { // a known failure comes before an unconfirmed one
			fails[frontendRecord+key.String()] = driver.Failure{Owner: owner.String(), Message: ports.message(f)}
		}
		if !f.Unconfirmed {
			s.Failing++
		}
	}
	s.Failures, s.Unlisted = ListFailures(fails)
	if failing != nil { // clients may reach this gateway
		s.Unlisted = allNamespaces(s.Unlisted, t.former.unnamed.namespaces)
	}
	return s
}

// portCount counts the ports of a LoadBalancer that fail, and those that may fail.
type portCount struct{ failing, unconfirmed int }

func (p portCount) add(f watchdog.Failure) portCount {
	if f.Unconfirmed {
		return portCount{p.failing, p.unconfirmed + 1}
	}
	return portCount{p.failing + 1, p.unconfirmed}
}

// message returns the message of a port, with the number of other ports: one port of each LoadBalancer is named.
func (p portCount) message(f watchdog.Failure) string {
	others, format := p.failing+p.unconfirmed-1, othersFailFormat
	if others == 0 {
		return f.Message
	}
	if p.unconfirmed > 0 {
		format = othersMayFailFormat
	}
	end := fmt.Sprintf(format, others) // the next process reads it, so it must not be truncated
	return plain.Message(f.Message, maxMessage-len(end)) + end
}

// CountNodesAnswer counts the failures whose nodes answer the gateway itself.
func CountNodesAnswer(failing map[model.FrontendKey]watchdog.Failure) (n int) {
	for _, f := range failing {
		if f.NodesAnswer {
			n++
		}
	}
	return n
}

// formerMessage returns the message of a frontend by the former process, or by the former gateway of the address, empty for none. It does not count
// if the address belongs to another LoadBalancer now.
func (t *Tries) formerMessage(key model.FrontendKey) string {
	before := t.former.failures[key]
	if owner, known := t.owner(key); !known || owner.String() != before.loadBalancer {
		return ""
	}
	return before.message
}

// elsewhere returns a function that reports whether another gateway is to answer for an address. It caches the results.
func (t *Tries) elsewhere() func(netip.Addr) bool {
	cache := map[netip.Addr]bool{}
	return func(address netip.Addr) bool {
		belongsToPeer, cached := cache[address]
		if !cached {
			belongsToPeer = t.answerers.BelongsToPeer(address)
			cache[address] = belongsToPeer
		}
		return belongsToPeer
	}
}

// takeOverMoved takes over the failures of ports whose addresses have moved here from other gateways.
func (t *Tries) takeOverMoved(now time.Time) {
	if t.former.failures == nil {
		return // the gateway's own object was not read yet
	}
	for port, f := range t.ofPeers {
		switch answers := t.answerers.AnswererOf(port.VIP, port.gateway); {
		case !f.expires.IsZero() && now.After(f.expires):
			delete(t.ofPeers, port)
		case answers == t.self && f.atPeer:
			t.takeOver(port, f.formerFailure, now)
			f.atPeer = false
		case answers != "":
			f.atPeer = answers == port.gateway
		}
	}
}

// triable returns the frontends that can be tried from the addresses. The comment of package watchdog says which ones cannot.
func triable(s model.Snapshot, from []netip.Addr, served func(model.Frontend) bool) (list []watchdog.Frontend) {
	t := newTriability(s, from)
	for _, f := range s.Frontends {
		if !t.allows(f) || !served(f) {
			continue
		}
		var endpoints []netip.AddrPort
		for _, e := range t.pools[f.Pool] {
			if e.State == model.Active {
				endpoints = append(endpoints, netip.AddrPortFrom(e.Address, f.TargetPort))
			}
		}
		list = append(list, watchdog.Frontend{AddrPort: netip.AddrPortFrom(f.VIP, f.Port), Tenant: f.Tenant, KeepsClientAddress: f.Forwarding == model.Transparent,
			Limited: f.MaxConnections > 0 || f.MaxNewPerSecond > 0, Endpoints: endpoints})
	}
	return list
}

// triability decides which frontends can be tried from some addresses.
type triability struct {
	from  []netip.Addr
	pools map[model.PoolID][]model.Endpoint
}

func newTriability(s model.Snapshot, from []netip.Addr) triability {
	t := triability{from, make(map[model.PoolID][]model.Endpoint, len(s.Pools))}
	for _, p := range s.Pools {
		t.pools[p.ID] = p.Endpoints
	}
	return t
}

// allows reports whether the frontend can be tried. Without an active endpoint it refuses connections.
func (t triability) allows(f model.Frontend) bool {
	return f.Protocol == model.TCP && f.Forwarding != model.Direct && mayConnect(f, t.from) &&
		slices.ContainsFunc(t.pools[f.Pool], func(e model.Endpoint) bool { return e.State == model.Active })
}

// mayConnect reports whether the frontend's source ranges contain one of the addresses of its family.
func mayConnect(f model.Frontend, from []netip.Addr) bool {
	return slices.ContainsFunc(from, func(source netip.Addr) bool {
		return source.Is4() == f.VIP.Is4() &&
			(!f.Restricted || slices.ContainsFunc(f.SourceRanges, func(r netip.Prefix) bool { return r.Contains(source) }))
	})
}
