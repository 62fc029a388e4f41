package translate

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"kubelb.k8c.io/core/model"
)

// CheckKind says how an endpoint's health is found out.
type CheckKind uint8

const (
	// CheckNode asks the node's kube-proxy; one check serves all Services of the node.
	CheckNode CheckKind = iota
	// CheckLocal asks healthCheckNodePort, which also tells the number of local endpoints.
	CheckLocal
	// CheckConnect connects to the NodePort, where the tenant tells nothing better.
	CheckConnect
)

// Target is one thing to probe: a node address, by itself or at a Service's port.
type Target struct {
	Address netip.Addr
	Kind    CheckKind
	// Port is 0 for CheckNode.
	Port uint16
}

// Compare orders targets by address, kind and port.
func (t Target) Compare(o Target) int {
	return cmp.Or(t.Address.Compare(o.Address), cmp.Compare(t.Kind, o.Kind), cmp.Compare(t.Port, o.Port))
}

// Health is what probing found out.
type Health struct {
	State model.EndpointState
	// Weight is the number of local endpoints, where the check tells; 0 otherwise.
	Weight uint16
}

// Hub holds the objects of the management cluster and the model that they make. Its methods take one change each;
// Flush returns what they changed in the model. The order of changes does not matter for the result. It is not safe for
// concurrent use.
type Hub struct {
	fence     Fence
	tenants   map[string]Tenant
	addresses map[model.ObjectName]Addresses
	// resolved remembers what of each Addresses object can be used, while tenant and fence stay.
	resolved map[model.ObjectName]*resolution
	lbs      map[model.ObjectName]*entry
	byTenant map[string]map[model.ObjectName]bool
	byRef    map[model.ObjectName]map[model.ObjectName]bool
	pools    map[model.PoolID]*pool
	poolsOf  map[model.ObjectName]map[model.PoolID]bool
	byTarget map[Target]map[model.PoolID]bool
	health   map[Target]Health
	// claims are the frontends that LoadBalancers ask for, in the order of their owners: the first of a key is served.
	claims map[model.FrontendKey][]*model.Frontend

	dirtyLBs   map[model.ObjectName]bool
	dirtyPools map[model.PoolID]bool
	dirtyKeys  map[model.FrontendKey]bool

	// The model as of the last Flush. A record is replaced as a whole and never changed.
	servedPools map[model.PoolID]model.Pool
	served      map[model.FrontendKey]*model.Frontend
}

// entry is a LoadBalancer with what its last translation took hold of.
type entry struct {
	lb        LoadBalancer
	read      *translation
	frontends []model.Frontend
	pools     []model.PoolID
	// conflicts are the keys that another LoadBalancer has.
	conflicts map[model.FrontendKey]Problem
}

// pool is where a pool's endpoints come from. Its content is made anew at Flush.
type pool struct {
	id     model.PoolID
	tenant string
	// reference is the Addresses object that it mirrors; nil when the addresses are the pool's own.
	reference *model.ObjectName
	addresses []netip.Addr
	v4        bool
	kind      CheckKind
	port      uint16
	users     int
	targets   []Target
}

// NewHub returns an empty hub.
func NewHub() *Hub {
	return &Hub{
		tenants: map[string]Tenant{}, addresses: map[model.ObjectName]Addresses{}, resolved: map[model.ObjectName]*resolution{}, lbs: map[model.ObjectName]*entry{},
		byTenant: map[string]map[model.ObjectName]bool{}, byRef: map[model.ObjectName]map[model.ObjectName]bool{},
		pools: map[model.PoolID]*pool{}, poolsOf: map[model.ObjectName]map[model.PoolID]bool{},
		byTarget: map[Target]map[model.PoolID]bool{}, health: map[Target]Health{},
		claims:   map[model.FrontendKey][]*model.Frontend{},
		dirtyLBs: map[model.ObjectName]bool{}, dirtyPools: map[model.PoolID]bool{}, dirtyKeys: map[model.FrontendKey]bool{},
		servedPools: map[model.PoolID]model.Pool{}, served: map[model.FrontendKey]*model.Frontend{},
	}
}

// SetFence replaces the fence; if it differs every LoadBalancer is translated anew.
func (h *Hub) SetFence(fence Fence) {
	if slices.Equal(h.fence.Forbidden, fence.Forbidden) && slices.Equal(h.fence.VIPs, fence.VIPs) {
		return
	}
	h.fence = fence
	clear(h.resolved)
	for name := range h.lbs {
		h.dirtyLBs[name] = true
	}
	h.markReferencePools(func(model.ObjectName) bool { return true })
}

// SetTenant adds or replaces a tenant.
func (h *Hub) SetTenant(t Tenant) {
	namespace := t.Namespace()
	if known, ok := h.tenants[namespace]; ok && known.Disabled == t.Disabled && slices.Equal(known.BackendCIDRs, t.BackendCIDRs) {
		return
	}
	h.tenants[namespace] = t
	h.tenantChanged(namespace)
}

// DeleteTenant forgets a tenant; nothing of it is served any more.
func (h *Hub) DeleteTenant(name string) {
	namespace := Tenant{Name: name}.Namespace()
	delete(h.tenants, namespace)
	h.tenantChanged(namespace)
}

func (h *Hub) tenantChanged(namespace string) {
	for name := range h.byTenant[namespace] {
		h.dirtyLBs[name] = true
	}
	inNamespace := func(ref model.ObjectName) bool { return ref.Namespace == namespace }
	maps.DeleteFunc(h.resolved, func(ref model.ObjectName, _ *resolution) bool { return inNamespace(ref) })
	h.markReferencePools(inNamespace)
}

func (h *Hub) markReferencePools(match func(model.ObjectName) bool) {
	for ref, ids := range h.poolsOf {
		if match(ref) {
			for id := range ids {
				h.dirtyPools[id] = true
			}
		}
	}
}

// SetAddresses adds or replaces an Addresses object. LoadBalancers that refer to it are translated anew only if it was
// not there before; otherwise its pools change and nothing else.
func (h *Hub) SetAddresses(a Addresses) {
	before, known := h.addresses[a.ObjectName]
	if !known {
		maps.Copy(h.dirtyLBs, h.byRef[a.ObjectName])
	} else if slices.Equal(before.List, a.List) {
		return
	}
	h.addresses[a.ObjectName] = a
	delete(h.resolved, a.ObjectName)
	h.markReferencePools(func(ref model.ObjectName) bool { return ref == a.ObjectName })
}

// DeleteAddresses forgets an Addresses object; LoadBalancers that refer to it wait.
func (h *Hub) DeleteAddresses(name model.ObjectName) {
	delete(h.addresses, name)
	delete(h.resolved, name)
	maps.Copy(h.dirtyLBs, h.byRef[name])
}

// SetLoadBalancer adds or replaces a LoadBalancer.
func (h *Hub) SetLoadBalancer(lb LoadBalancer) {
	e := h.lbs[lb.ObjectName]
	if e == nil {
		e = &entry{}
		h.lbs[lb.ObjectName] = e
		add(h.byTenant, lb.Namespace, lb.ObjectName)
	}
	if ref, ok := e.lb.reference(); ok {
		remove(h.byRef, ref, lb.ObjectName)
	}
	e.lb = lb
	if ref, ok := lb.reference(); ok {
		add(h.byRef, ref, lb.ObjectName)
	}
	h.dirtyLBs[lb.ObjectName] = true
}

// DeleteLoadBalancer forgets a LoadBalancer.
func (h *Hub) DeleteLoadBalancer(name model.ObjectName) {
	e := h.lbs[name]
	if e == nil {
		return
	}
	if ref, ok := e.lb.reference(); ok {
		remove(h.byRef, ref, name)
	}
	h.release(name, e)
	remove(h.byTenant, name.Namespace, name)
	delete(h.lbs, name)
	delete(h.dirtyLBs, name)
}

// reference is the Addresses object that the LoadBalancer refers to, in its own namespace.
func (lb *LoadBalancer) reference() (model.ObjectName, bool) {
	if lb.Reference == nil {
		return model.ObjectName{}, false
	}
	return model.ObjectName{Namespace: lb.Namespace, Name: lb.Reference.Name}, true
}

// SetHealth records what probing found out about a target.
func (h *Hub) SetHealth(t Target, health Health) {
	if len(h.byTarget[t]) == 0 || h.health[t] == health {
		return
	}
	h.health[t] = health
	maps.Copy(h.dirtyPools, h.byTarget[t])
}

// HasTarget reports whether some pool wants the target probed.
func (h *Hub) HasTarget(t Target) bool { return len(h.byTarget[t]) > 0 }

// Problems returns why the LoadBalancer is not, or not wholly, served, as of the last Flush.
func (h *Hub) Problems(name model.ObjectName) []Problem {
	e := h.lbs[name]
	if e == nil {
		return nil
	}
	var problems []Problem
	if e.read != nil {
		var referred *resolution
		if ref, ok := e.lb.reference(); ok {
			referred = h.resolve(ref)
		}
		problems = e.read.withReferred(slices.Clone(e.read.problems), referred)
	}
	for _, key := range sortedKeys(e.conflicts, model.FrontendKey.Compare) {
		problems = append(problems, e.conflicts[key])
	}
	return problems
}

// Snapshot returns the whole model as of the last Flush, in canonical order, in which each record is kept.
func (h *Hub) Snapshot() model.Snapshot {
	s := model.Snapshot{Pools: make([]model.Pool, 0, len(h.servedPools)), Frontends: make([]model.Frontend, 0, len(h.served))}
	for _, id := range slices.Sorted(maps.Keys(h.servedPools)) {
		s.Pools = append(s.Pools, h.servedPools[id])
	}
	for _, key := range sortedKeys(h.served, model.FrontendKey.Compare) {
		s.Frontends = append(s.Frontends, *h.served[key])
	}
	return s
}

// Owner returns the LoadBalancer that the frontend was served for as of the last Flush.
func (h *Hub) Owner(key model.FrontendKey) (model.ObjectName, bool) {
	f, ok := h.served[key]
	if !ok {
		return model.ObjectName{}, false
	}
	return f.Owner, true
}

// Changes is what a Flush changed.
type Changes struct {
	Model model.Delta
	// NewTargets want probing from now on, GoneTargets no longer.
	NewTargets, GoneTargets []Target
}

// Flush translates what has changed since the last one and returns the difference, in canonical order.
func (h *Hub) Flush() Changes {
	for _, name := range sortedKeys(h.dirtyLBs, compareNames) {
		h.translate(name)
	}
	clear(h.dirtyLBs)
	var c Changes
	before := map[Target]bool{}
	for _, id := range slices.Sorted(maps.Keys(h.dirtyPools)) {
		h.flushPool(id, &c, before)
	}
	clear(h.dirtyPools)
	c.Model.UpsertFrontends = slices.Grow(c.Model.UpsertFrontends, len(h.dirtyKeys))
	for _, key := range sortedKeys(h.dirtyKeys, model.FrontendKey.Compare) {
		h.flushKey(key, &c.Model)
	}
	clear(h.dirtyKeys)
	for _, t := range sortedKeys(before, Target.Compare) {
		switch wanted := h.HasTarget(t); {
		case wanted && !before[t]:
			c.NewTargets = append(c.NewTargets, t)
		case !wanted && before[t]:
			c.GoneTargets = append(c.GoneTargets, t)
			delete(h.health, t)
		}
	}
	return c
}

// flushPool makes the pool's content and notes whether it differs from what is served.
func (h *Hub) flushPool(id model.PoolID, c *Changes, before map[Target]bool) {
	p, used := h.pools[id]
	if used && p.users == 0 {
		h.retarget(p, nil, before)
		delete(h.pools, id)
		if p.reference != nil {
			remove(h.poolsOf, *p.reference, id)
		}
		used = false
	}
	if !used {
		if _, served := h.servedPools[id]; served {
			delete(h.servedPools, id)
			c.Model.DeletePools = append(c.Model.DeletePools, id)
		}
		return
	}
	addresses := h.poolAddresses(p)
	targets := make([]Target, len(addresses))
	for i, a := range addresses {
		targets[i] = Target{Address: a, Kind: p.kind, Port: p.port}
	}
	h.retarget(p, targets, before)
	content := model.Pool{ID: id, Tenant: p.tenant, Endpoints: h.endpoints(targets)}
	if old, served := h.servedPools[id]; !served || !slices.Equal(old.Endpoints, content.Endpoints) || old.Tenant != content.Tenant {
		h.servedPools[id] = content
		c.Model.UpsertPools = append(c.Model.UpsertPools, content)
	}
}

func (h *Hub) poolAddresses(p *pool) []netip.Addr {
	if p.reference == nil {
		return p.addresses
	}
	r := h.resolve(*p.reference)
	if r == nil {
		return nil
	}
	return ofFamily(r.good, p.v4)
}

// resolve returns what of the Addresses object can be used, nil when it or its tenant is not there.
func (h *Hub) resolve(ref model.ObjectName) *resolution {
	if r := h.resolved[ref]; r != nil {
		return r
	}
	a, known := h.addresses[ref]
	tenant, owned := h.tenants[ref.Namespace]
	if !known || !owned {
		return nil
	}
	r := resolve(a, tenant, h.fence)
	h.resolved[ref] = r
	return r
}

// endpoints turns targets into endpoints in canonical order, with the health that is known of them. When all seem dead,
// all stay in: a prober that is cut off must not take a tenant down.
func (h *Hub) endpoints(targets []Target) []model.Endpoint {
	endpoints := make([]model.Endpoint, len(targets))
	alive := false
	for i, t := range targets {
		health := h.health[t]
		endpoints[i] = model.Endpoint{ID: t.Address.String(), Address: t.Address, Weight: max(health.Weight, 1), State: health.State}
		alive = alive || health.State == model.Active
	}
	if !alive {
		for i := range endpoints {
			endpoints[i].State = model.Active
		}
	}
	slices.SortFunc(endpoints, func(a, b model.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return endpoints
}

// retarget notes which targets the pool wants probed; before keeps, for each one touched, whether it was wanted at first.
func (h *Hub) retarget(p *pool, targets []Target, before map[Target]bool) {
	if slices.Equal(p.targets, targets) {
		return
	}
	for _, t := range slices.Concat(p.targets, targets) {
		if _, noted := before[t]; !noted {
			before[t] = h.HasTarget(t)
		}
	}
	for _, t := range p.targets {
		remove(h.byTarget, t, p.id)
	}
	for _, t := range targets {
		add(h.byTarget, t, p.id)
	}
	p.targets = targets
}

// flushKey decides who has a frontend that several LoadBalancers may claim, and notes whether that is a change.
func (h *Hub) flushKey(key model.FrontendKey, d *model.Delta) {
	claims := h.claims[key]
	if len(claims) == 0 {
		delete(h.claims, key)
		if _, served := h.served[key]; served {
			delete(h.served, key)
			d.DeleteFrontends = append(d.DeleteFrontends, key)
		}
		return
	}
	winner := claims[0]
	delete(h.lbs[winner.Owner].conflicts, key)
	for _, loser := range claims[1:] {
		h.lbs[loser.Owner].conflict(key, winner.Owner)
	}
	if old, served := h.served[key]; !served || old.Text() != winner.Text() {
		h.served[key] = winner
		d.UpsertFrontends = append(d.UpsertFrontends, *winner)
	}
}

// conflict notes that another LoadBalancer has the frontend that this one wants; a stranger's is not named.
func (e *entry) conflict(key model.FrontendKey, winner model.ObjectName) {
	if e.conflicts == nil {
		e.conflicts = map[model.FrontendKey]Problem{}
	}
	whose := "another tenant"
	if winner.Namespace == e.lb.Namespace {
		whose = "LoadBalancer " + winner.Name
	}
	e.conflicts[key] = Problem{Reason: ReasonConflict, Field: "spec.ports", Partial: true,
		Message: fmt.Sprintf("%s is served for %s; change the port or ask for another address", key, whose)}
}

// release lets go of all that the entry's last translation took hold of.
func (h *Hub) release(name model.ObjectName, e *entry) {
	for _, f := range e.frontends {
		h.claims[f.FrontendKey] = slices.DeleteFunc(h.claims[f.FrontendKey], func(claim *model.Frontend) bool { return claim.Owner == name })
		h.dirtyKeys[f.FrontendKey] = true
	}
	for _, id := range e.pools {
		p := h.pools[id]
		if p.users--; p.users == 0 {
			h.dirtyPools[id] = true
		}
	}
	e.frontends, e.pools, e.conflicts = nil, nil, nil
}

// translate makes a LoadBalancer's frontends and pools anew.
func (h *Hub) translate(name model.ObjectName) {
	e := h.lbs[name]
	h.release(name, e)
	lb := &e.lb
	var tenant *Tenant
	if t, known := h.tenants[lb.Namespace]; known {
		tenant = &t
	}
	found := false
	if ref, ok := lb.reference(); ok {
		_, found = h.addresses[ref]
	}
	t := read(lb, tenant, found, h.fence)
	e.read = t
	if _, refused := Refused(t.problems); refused {
		return
	}
	for _, vip := range t.vips {
		pool, sources := h.usePool(e, t, vip.Is4()), prefixesOfFamily(t.sourceRanges, vip.Is4())
		for _, p := range t.ports {
			e.frontends = append(e.frontends, model.Frontend{
				FrontendKey: model.FrontendKey{VIP: vip, Protocol: p.protocol, Port: p.number},
				Owner:       name, Tenant: tenant.Name, TargetPort: p.target, Forwarding: t.forwarding(),
				AffinityTimeout: t.affinity, Restricted: len(lb.SourceRanges) > 0, SourceRanges: sources,
				Pool: pool,
			})
		}
	}
	for i := range e.frontends {
		h.claim(&e.frontends[i])
	}
}

// claim asks for a frontend.
func (h *Hub) claim(f *model.Frontend) {
	claims := h.claims[f.FrontendKey]
	at, _ := slices.BinarySearchFunc(claims, f, func(a, b *model.Frontend) int { return compareNames(a.Owner, b.Owner) })
	h.claims[f.FrontendKey] = slices.Insert(claims, at, f)
	h.dirtyKeys[f.FrontendKey] = true
}

// usePool finds or makes the pool that the LoadBalancer's frontends of one family use.
func (h *Hub) usePool(e *entry, t *translation, v4 bool) model.PoolID {
	p := t.pool(v4)
	known, ok := h.pools[p.id]
	if !ok {
		h.pools[p.id], known = p, p
		if p.reference != nil {
			add(h.poolsOf, *p.reference, p.id)
		}
	}
	if !slices.Contains(e.pools, p.id) {
		e.pools = append(e.pools, p.id)
		known.users++
	}
	if _, served := h.servedPools[p.id]; !served {
		h.dirtyPools[p.id] = true
	}
	return p.id
}

// pool describes the pool of one family: its name says where the endpoints come from and how they are checked, so that
// LoadBalancers of a tenant that agree on both share it.
func (t *translation) pool(v4 bool) *pool {
	p := &pool{tenant: t.tenant.Name, v4: v4}
	suffix := "v6"
	if v4 {
		suffix = "v4"
	}
	t.check(p)
	switch {
	case p.kind == CheckLocal:
		suffix += ".local-" + strconv.Itoa(int(p.port))
	case p.kind == CheckConnect:
		suffix += ".connect-" + strconv.Itoa(int(p.port))
	}
	ref, referred := t.lb.reference()
	local := t.lb.LocalOnly && t.lb.Local != nil
	switch {
	case local:
		p.addresses = ofFamily(t.local, v4)
	case referred:
		p.reference = &ref
		p.id = model.PoolID(p.tenant + "/" + shortName(ref.Name) + "." + suffix)
		return p
	default:
		p.addresses = ofFamily(t.own, v4)
	}
	p.id = model.PoolID(p.tenant + "/set-" + setName(p.addresses) + "." + suffix)
	return p
}

// check chooses how the pool's endpoints are probed.
func (t *translation) check(p *pool) {
	if !t.lb.LocalOnly {
		return
	}
	if t.lb.HealthCheckNodePort > 0 {
		p.kind, p.port = CheckLocal, uint16(t.lb.HealthCheckNodePort)
		return
	}
	// Without a health port, a node without local endpoints can only be told by its silence on the NodePort.
	for _, candidate := range t.ports {
		if t.lb.Local == nil && candidate.protocol == model.TCP {
			p.kind, p.port = CheckConnect, candidate.target
			return
		}
	}
}

// shortName keeps pool names short enough for what a kernel stores beside them: an object's name may have 253 characters.
func shortName(name string) string {
	const longest = 24
	if len(name) <= longest {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "ref-" + hex.EncodeToString(sum[:8])
}

// setName is short and stable for a set of addresses.
func setName(addresses []netip.Addr) string {
	sum := sha256.New()
	for _, a := range addresses {
		fmt.Fprintln(sum, a)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

func ofFamily(addresses []netip.Addr, v4 bool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return a.Is4() != v4 })
}

func prefixesOfFamily(prefixes []netip.Prefix, v4 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return p.Addr().Is4() != v4 })
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

func add[K, V comparable](index map[K]map[V]bool, key K, value V) {
	if index[key] == nil {
		index[key] = map[V]bool{}
	}
	index[key][value] = true
}

func remove[K, V comparable](index map[K]map[V]bool, key K, value V) {
	delete(index[key], value)
	if len(index[key]) == 0 {
		delete(index, key)
	}
}
