package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"kubelb.k8c.io/core/model"
)

// CheckKind is the kind of health check of an endpoint.
type CheckKind uint8

const (
	// CheckNode asks the node's kube-proxy. One check is for all Services of the node.
	CheckNode CheckKind = iota
	// CheckLocal asks healthCheckNodePort, which also returns the number of local endpoints.
	CheckLocal
	// CheckConnect connects to the NodePort, if there is no better check.
	CheckConnect
)

// Target is what a health check checks: a node address, or a port of it. Tenants do not share targets, so that the results for one tenant do not
// affect another.
type Target struct {
	Tenant  string
	Address netip.Addr
	Kind    CheckKind
	// Port is 0 for CheckNode.
	Port uint16
}

// Compare orders targets by address, kind, port and tenant.
func (t Target) Compare(o Target) int {
	return cmp.Or(t.Address.Compare(o.Address), cmp.Compare(t.Kind, o.Kind), cmp.Compare(t.Port, o.Port), cmp.Compare(t.Tenant, o.Tenant))
}

// Health is the result of a health check.
type Health struct {
	State model.EndpointState
	// Weight is the number of local endpoints if the check returns it, and 0 otherwise.
	Weight uint16
}

// Translator holds the objects of the management cluster and the model that it translates them to. Its methods take one change
// each, and Flush returns what they changed in the model. The result does not depend on the order of changes. It is not
// safe for concurrent use.
type Translator struct {
	filter     TargetFilter
	tenants    map[string]Tenant
	sources    map[model.ObjectName]*source
	lbs        map[model.ObjectName]*entry
	pools      map[model.PoolID]*pool
	nodeOwners *NodeOwners
	mentions   mentions
	byTarget   map[Target]map[*pool]bool
	health     map[Target]Health
	frontends  map[model.FrontendKey]*frontend

	// What has changed since the last Flush. Deleting an entry clears its dirty flag.
	dirtyLBs       []*entry
	dirtyPools     []*pool
	dirtyFrontends []*frontend
}

// entry is a LoadBalancer with the frontends and pools of its last translation.
type entry struct {
	// lb has its targets packed.
	lb       LoadBalancer
	mentions AddressHashes
	// source is the Addresses object that it refers to, nil for none.
	source    *source
	dirty     bool
	parsed    *translation
	frontends []model.Frontend
	pools     []*pool
	// conflicts are problems of frontends that are served for another LoadBalancer.
	conflicts map[model.FrontendKey]Problem
}

// frontend is a frontend that LoadBalancers request. The claims are sorted by their names, and the first is served.
type frontend struct {
	key    model.FrontendKey
	claims []claim
	dirty  bool
	// served is the frontend in the model as of the last Flush, nil for none. It is replaced as a whole and never changed.
	served *model.Frontend
}

type claim struct {
	entry  *entry
	wanted *model.Frontend
}

// source is an Addresses object that LoadBalancers refer to, or that they may refer to.
type source struct {
	name model.ObjectName
	// object is nil while the object does not exist.
	object *Addresses
	// resolved caches the usable targets of the object, until object, tenant or filter change.
	resolved  *resolution
	referring map[*entry]bool
	pools     map[*pool]bool
	mentions  AddressHashes
}

// NewTranslator returns a translator without objects.
func NewTranslator() *Translator {
	nodeOwners := NewNodeOwners()
	return &Translator{
		filter: TargetFilter{NodeOwners: nodeOwners}, nodeOwners: nodeOwners, mentions: newMentions(),
		tenants: map[string]Tenant{}, sources: map[model.ObjectName]*source{}, lbs: map[model.ObjectName]*entry{},
		pools: map[model.PoolID]*pool{}, byTarget: map[Target]map[*pool]bool{}, health: map[Target]Health{},
		frontends: map[model.FrontendKey]*frontend{},
	}
}

// source returns the source of an Addresses object. It creates it if there is none.
func (h *Translator) source(name model.ObjectName) *source {
	s := h.sources[name]
	if s == nil {
		s = &source{name: name, referring: map[*entry]bool{}, pools: map[*pool]bool{}}
		h.sources[name] = s
	}
	return s
}

// dropUnused removes a source without an object to which nothing refers.
func (h *Translator) dropUnused(s *source) {
	if s.object == nil && len(s.referring) == 0 && len(s.pools) == 0 {
		delete(h.sources, s.name)
	}
}

// markSource marks that the usable targets of the source may have changed.
func (h *Translator) markSource(s *source) {
	s.resolved = nil
	for p := range s.pools {
		h.markPool(p)
	}
}

func (h *Translator) markLB(e *entry) {
	if !e.dirty {
		e.dirty = true
		h.dirtyLBs = append(h.dirtyLBs, e)
	}
}

func (h *Translator) markPool(p *pool) {
	if !p.dirty {
		p.dirty = true
		h.dirtyPools = append(h.dirtyPools, p)
	}
}

func (h *Translator) markFrontend(f *frontend) {
	if !f.dirty {
		f.dirty = true
		h.dirtyFrontends = append(h.dirtyFrontends, f)
	}
}

// SetTargetFilter replaces the filter, except its hosts and node owners. If it differs, all LoadBalancers are translated again.
func (h *Translator) SetTargetFilter(filter TargetFilter) {
	if slices.Equal(h.filter.Forbidden, filter.Forbidden) && slices.Equal(h.filter.VIPs, filter.VIPs) {
		return
	}
	h.filter.Forbidden, h.filter.VIPs = filter.Forbidden, filter.VIPs
	h.markAll()
}

// SetTenant adds or replaces a tenant.
func (h *Translator) SetTenant(t Tenant) {
	namespace := t.Namespace()
	if known, ok := h.tenants[namespace]; ok && known.equal(t) {
		return
	}
	h.tenants[namespace] = t
	if h.nodeOwners.SetTenant(t) {
		h.markAll()
		return
	}
	h.tenantChanged(namespace)
}

// DeleteTenant removes a tenant. None of its LoadBalancers is served any more.
func (h *Translator) DeleteTenant(name string) {
	namespace := Tenant{Name: name}.Namespace()
	delete(h.tenants, namespace)
	h.nodeOwners.DeleteTenant(name)
	h.markAll()
}

func (h *Translator) tenantChanged(namespace string) {
	for name, e := range h.lbs {
		if name.Namespace == namespace {
			h.markLB(e)
		}
	}
	for name, s := range h.sources {
		if name.Namespace == namespace {
			h.markSource(s)
		}
	}
}

// SetAddresses adds or replaces an Addresses object. LoadBalancers that refer to it are translated again only if it is
// new. Otherwise only its pools change.
func (h *Translator) SetAddresses(a Addresses) {
	s := h.source(a.ObjectName)
	if s.object == nil {
		h.markReferring(s)
	} else if slices.Equal(s.object.List, a.List) && slices.Equal(s.object.Held, a.Held) {
		return
	}
	s.object = &a
	h.setListed(a)
	h.mentions.setSource(s)
	h.markSource(s)
}

// DeleteAddresses removes an Addresses object. LoadBalancers that refer to it are not served until it exists again.
func (h *Translator) DeleteAddresses(name model.ObjectName) {
	s := h.sources[name]
	if s == nil {
		return
	}
	h.setListed(Addresses{ObjectName: name})
	s.object = nil
	h.mentions.setSource(s)
	h.markSource(s)
	h.markReferring(s)
	h.dropUnused(s)
}

func (h *Translator) markReferring(s *source) {
	for e := range s.referring {
		h.markLB(e)
	}
}

// SetLoadBalancer adds or replaces a LoadBalancer. Most changes of the object are of its status and do not affect forwarding.
func (h *Translator) SetLoadBalancer(lb LoadBalancer) {
	lb = lb.packed()
	e := h.lbs[lb.ObjectName]
	if e == nil {
		e = &entry{}
		h.lbs[lb.ObjectName] = e
	} else if reflect.DeepEqual(e.lb, lb) {
		e.lb.Packed = lb.Packed // so that the hub and a cache share one text in memory
		return
	}
	retargeted := e.lb.Packed != lb.Packed
	if e.lb = lb; retargeted {
		h.mentions.setEntry(e)
	}
	h.setSource(e)
	h.markLB(e)
}

// setSource connects the entry with the source that its LoadBalancer refers to.
func (h *Translator) setSource(e *entry) {
	ref, found := e.lb.reference()
	if before := e.source; before != nil {
		if found && before.name == ref {
			return
		}
		delete(before.referring, e)
		h.dropUnused(before)
		e.source = nil
	}
	if found {
		e.source = h.source(ref)
		e.source.referring[e] = true
	}
}

// DeleteLoadBalancer removes a LoadBalancer.
func (h *Translator) DeleteLoadBalancer(name model.ObjectName) {
	e := h.lbs[name]
	if e == nil {
		return
	}
	e.lb.Packed = PackedTargets{}
	h.mentions.setEntry(e)
	e.lb.Reference = nil
	h.setSource(e)
	h.release(e)
	delete(h.lbs, name)
	e.dirty = false
}

// reference returns the name of the Addresses object that the LoadBalancer refers to, in its own namespace.
func (lb *LoadBalancer) reference() (model.ObjectName, bool) {
	if lb.Reference == nil {
		return model.ObjectName{}, false
	}
	return model.ObjectName{Namespace: lb.Namespace, Name: lb.Reference.Name}, true
}

// SetHealth sets the result of the health check of a target.
func (h *Translator) SetHealth(t Target, health Health) {
	if before, known := h.health[t]; len(h.byTarget[t]) == 0 || known && before == health {
		return
	}
	h.health[t] = health
	for p := range h.byTarget[t] {
		h.markPool(p)
	}
}

// HasTarget reports whether a pool needs health checks of the target.
func (h *Translator) HasTarget(t Target) bool { return len(h.byTarget[t]) > 0 }

// Problems returns why the LoadBalancer is not, or not wholly, served, as of the last Flush.
func (h *Translator) Problems(name model.ObjectName) []Problem {
	e := h.lbs[name]
	if e == nil {
		return nil
	}
	var problems []Problem
	if e.parsed != nil {
		problems = e.parsed.withReferenceProblems(slices.Clone(e.parsed.problems), h.resolve(e.source))
	}
	for _, key := range sortedKeys(e.conflicts, model.FrontendKey.Compare) {
		problems = append(problems, e.conflicts[key])
	}
	return problems
}

// Snapshot returns the whole model as of the last Flush, in canonical order. The caller must not change the records.
func (h *Translator) Snapshot() model.Snapshot {
	s := model.Snapshot{Pools: make([]model.Pool, 0, len(h.pools)), Frontends: make([]model.Frontend, 0, len(h.frontends))}
	for _, p := range slices.SortedFunc(maps.Values(h.pools), comparePools) {
		if p.served != nil {
			s.Pools = append(s.Pools, *p.served)
		}
	}
	for _, f := range slices.SortedFunc(maps.Values(h.frontends), compareFrontends) {
		if f.served != nil {
			s.Frontends = append(s.Frontends, *f.served)
		}
	}
	return s
}

// Addresses returns the addresses of all endpoints, and the VIPs of frontends with forwarding mode direct, as of the last Flush, sorted.
func (h *Translator) Addresses() (endpoints, direct []netip.Addr) {
	endpointSet, directSet := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, p := range h.pools {
		if p.served == nil {
			continue
		}
		for _, e := range p.served.Endpoints {
			endpointSet[e.Address] = true
		}
	}
	for _, f := range h.frontends {
		if f.served != nil && f.served.Forwarding == model.Direct {
			directSet[f.served.VIP] = true
		}
	}
	return slices.SortedFunc(maps.Keys(endpointSet), netip.Addr.Compare), slices.SortedFunc(maps.Keys(directSet), netip.Addr.Compare)
}

func comparePools(a, b *pool) int { return cmp.Compare(a.id, b.id) }

func compareFrontends(a, b *frontend) int { return a.key.Compare(b.key) }

// Frontend returns a frontend as of the last Flush.
func (h *Translator) Frontend(key model.FrontendKey) (model.Frontend, bool) {
	f := h.frontends[key]
	if f == nil || f.served == nil {
		return model.Frontend{}, false
	}
	return *f.served, true
}

// Pool returns a pool as of the last Flush.
func (h *Translator) Pool(id model.PoolID) (model.Pool, bool) {
	p := h.pools[id]
	if p == nil || p.served == nil {
		return model.Pool{}, false
	}
	return *p.served, true
}

// Owner returns the LoadBalancer that the frontend was served for as of the last Flush.
func (h *Translator) Owner(key model.FrontendKey) (model.ObjectName, bool) {
	f := h.frontends[key]
	if f == nil || f.served == nil {
		return model.ObjectName{}, false
	}
	return f.served.Owner, true
}

// Changes is what a Flush changed.
type Changes struct {
	Model model.Delta
	// NewTargets need health checks from now on, GoneTargets no longer.
	NewTargets, GoneTargets []Target
}

// Flush translates what has changed since the last one and returns the difference, in canonical order.
func (h *Translator) Flush() Changes {
	for _, e := range h.dirtyLBs {
		if e.dirty {
			h.translate(e)
		}
	}
	h.dirtyLBs = nil
	var c Changes
	before := map[Target]bool{}
	slices.SortFunc(h.dirtyPools, comparePools)
	for _, p := range h.dirtyPools {
		h.flushPool(p, &c, before)
	}
	h.dirtyPools = nil
	slices.SortFunc(h.dirtyFrontends, compareFrontends)
	c.Model.UpsertFrontends = slices.Grow(c.Model.UpsertFrontends, len(h.dirtyFrontends))
	for _, f := range h.dirtyFrontends {
		h.flushFrontend(f, &c.Model)
	}
	h.dirtyFrontends = nil
	for _, t := range sortedKeys(before, Target.Compare) {
		switch needed := h.HasTarget(t); {
		case needed && !before[t]:
			c.NewTargets = append(c.NewTargets, t)
		case !needed && before[t]:
			c.GoneTargets = append(c.GoneTargets, t)
			delete(h.health, t)
		}
	}
	return c
}

// flushFrontend decides which LoadBalancer a frontend is served for, and adds the change to the delta, if there is one.
func (h *Translator) flushFrontend(f *frontend, d *model.Delta) {
	f.dirty = false
	if len(f.claims) == 0 {
		delete(h.frontends, f.key)
		if f.served != nil {
			d.DeleteFrontends = append(d.DeleteFrontends, f.key)
		}
		return
	}
	winner := f.claims[0].wanted
	delete(f.claims[0].entry.conflicts, f.key)
	for _, loser := range f.claims[1:] {
		loser.entry.conflict(f.key, winner.Owner)
	}
	if f.served == nil || !f.served.Equal(*winner) {
		f.served = winner
		d.UpsertFrontends = append(d.UpsertFrontends, *winner)
	}
}

// conflict adds the problem that the frontend is served for another LoadBalancer. It does not name a LoadBalancer of another tenant.
func (e *entry) conflict(key model.FrontendKey, winner model.ObjectName) {
	if e.conflicts == nil {
		e.conflicts = map[model.FrontendKey]Problem{}
	}
	owner := "another tenant"
	if winner.Namespace == e.lb.Namespace {
		owner = "LoadBalancer " + winner.Name
	}
	e.conflicts[key] = Problem{Reason: ReasonConflict, Field: "spec.ports", Partial: true,
		Message: fmt.Sprintf("%s is served for %s; change the port or ask for another address", key, owner)}
}

// release releases all frontends and pools of the entry's last translation.
func (h *Translator) release(e *entry) {
	for _, wanted := range e.frontends {
		f := h.frontends[wanted.FrontendKey]
		f.claims = slices.DeleteFunc(f.claims, func(c claim) bool { return c.entry == e })
		h.markFrontend(f)
	}
	for _, p := range e.pools {
		if p.users--; p.users == 0 {
			h.markPool(p)
		}
	}
	e.frontends, e.pools, e.conflicts = nil, nil, nil
}

// translate creates a LoadBalancer's frontends and pools again.
func (h *Translator) translate(e *entry) {
	e.dirty = false
	h.release(e)
	lb := &e.lb
	var tenant *Tenant
	if t, known := h.tenants[lb.Namespace]; known {
		tenant = &t
	}
	t := parse(lb, tenant, e.source != nil && e.source.object != nil, h.filter)
	e.parsed = t
	if _, refused := Refused(t.problems); refused {
		return
	}
	for _, vip := range t.vips {
		pool, sources := h.usePool(e, t, vip.Is4()), prefixesOfFamily(t.sourceRanges, vip.Is4())
		for _, p := range t.ports {
			e.frontends = append(e.frontends, model.Frontend{
				FrontendKey: model.FrontendKey{VIP: vip, Protocol: p.protocol, Port: p.number},
				Owner:       lb.ObjectName, Tenant: tenant.Name, TargetPort: p.target, Forwarding: t.forwarding(),
				AffinityTimeout: t.affinity, Restricted: len(lb.SourceRanges) > 0, SourceRanges: sources,
				Pool: pool, ProxyProtocol: lb.ProxyProtocol == ProxyProtocolV2 && p.protocol == model.TCP, IdleTimeout: t.idle,
				MaxConnections: tenant.ConnectionsPerPort, MaxNewPerSecond: tenant.NewConnectionsPerSecondPerPort,
			})
		}
	}
	for i := range e.frontends {
		h.claim(e, &e.frontends[i])
	}
}

// claim requests a frontend.
func (h *Translator) claim(e *entry, wanted *model.Frontend) {
	f := h.frontends[wanted.FrontendKey]
	if f == nil {
		f = &frontend{key: wanted.FrontendKey}
		h.frontends[f.key] = f
	}
	at, _ := slices.BinarySearchFunc(f.claims, wanted.Owner, func(c claim, name model.ObjectName) int { return compareNames(c.wanted.Owner, name) })
	f.claims = slices.Insert(f.claims, at, claim{e, wanted})
	h.markFrontend(f)
}

// sortedKeys returns a map's keys in order.
func sortedKeys[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	keys := slices.AppendSeq(make([]K, 0, len(m)), maps.Keys(m))
	slices.SortFunc(keys, compare)
	return keys
}

func compareNames(a, b model.ObjectName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
