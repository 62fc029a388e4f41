package translate

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"kubelb.k8c.io/core/model"
)

// pool is where a pool's endpoints come from. Its content is made anew at Flush.
type pool struct {
	id     model.PoolID
	tenant string
	// source is the Addresses object that it mirrors; nil when the addresses are the pool's own.
	source    *source
	addresses []netip.Addr
	v4        bool
	kind      CheckKind
	port      uint16
	users     int
	targets   []Target
	dirty     bool
	// served is what the model holds as of the last Flush, nil for nothing. It is replaced as a whole and never changed.
	served *model.Pool
}

// flushPool makes the pool's content and notes whether it differs from what is served.
func (h *Hub) flushPool(p *pool, c *Changes, before map[Target]bool) {
	p.dirty = false
	if p.users == 0 {
		h.retarget(p, nil, before)
		delete(h.pools, p.id)
		if p.source != nil {
			delete(p.source.pools, p)
			h.dropUnused(p.source)
		}
		if p.served != nil {
			c.Model.DeletePools = append(c.Model.DeletePools, p.id)
		}
		return
	}
	addresses := h.poolAddresses(p)
	targets := make([]Target, len(addresses))
	for i, a := range addresses {
		targets[i] = Target{Tenant: p.tenant, Address: a, Kind: p.kind, Port: p.port}
	}
	h.retarget(p, targets, before)
	endpoints := h.endpoints(targets)
	if p.served == nil || !slices.Equal(p.served.Endpoints, endpoints) {
		p.served = &model.Pool{ID: p.id, Tenant: p.tenant, Endpoints: endpoints}
		c.Model.UpsertPools = append(c.Model.UpsertPools, *p.served)
	}
}

func (h *Hub) poolAddresses(p *pool) []netip.Addr {
	if p.source == nil {
		return p.addresses
	}
	r := h.resolve(p.source)
	if r == nil {
		return nil
	}
	addresses := ofFamily(r.good, p.v4)
	if p.kind == CheckNode {
		return addresses
	}
	// A pool that is checked by a port of one Service is that Service's alone.
	kept, _ := bound(addresses, h.tenants[p.source.name.Namespace].mostOfItsOwn())
	return kept
}

// resolve returns what of the Addresses object can be used, nil when it or its tenant is not there.
func (h *Hub) resolve(s *source) *resolution {
	if s == nil || s.object == nil {
		return nil
	}
	if s.resolved == nil {
		if tenant, owned := h.tenants[s.name.Namespace]; owned {
			s.resolved = resolve(*s.object, tenant, h.fence)
		}
	}
	return s.resolved
}

// endpoints turns targets into endpoints in canonical order, with the health that is known of them. When all seem dead,
// all stay in: a prober that is cut off must not take a tenant down.
//
// A node that is new in a set of externalTrafficPolicy Local gets nothing before its health check has said that kube-proxy knows of
// the pod there, which the EndpointSlice may have told of seconds before: until then kube-proxy drops what comes.
func (h *Hub) endpoints(targets []Target) []model.Endpoint {
	endpoints := make([]model.Endpoint, len(targets))
	alive := false
	for i, t := range targets {
		health, known := h.health[t]
		if !known && t.Kind == CheckLocal {
			health.State = model.Unhealthy
		}
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
		remove(h.byTarget, t, p)
	}
	for _, t := range targets {
		add(h.byTarget, t, p)
	}
	p.targets = targets
}

// usePool finds or makes the pool that the LoadBalancer's frontends of one family use.
func (h *Hub) usePool(e *entry, t *translation, v4 bool) model.PoolID {
	wanted := t.pool(v4, e.source)
	p := h.pools[wanted.id]
	switch {
	case p == nil:
		p = wanted
		h.pools[p.id] = p
		if p.source != nil {
			p.source.pools[p] = true
		}
	case !slices.Equal(p.addresses, wanted.addresses):
		p.addresses = wanted.addresses
		h.markPool(p)
	}
	if !slices.Contains(e.pools, p) {
		e.pools = append(e.pools, p)
		p.users++
	}
	if p.served == nil {
		h.markPool(p)
	}
	return p.id
}

// pool describes the pool of one family: its name says where the endpoints come from and how they are checked, so that
// LoadBalancers of a tenant that agree on both share it. Endpoints with a ready pod are one LoadBalancer's: their pool has its name, and stays
// the same pool while pods come and go.
func (t *translation) pool(v4 bool, from *source) *pool {
	p := &pool{tenant: t.tenant.Name, v4: v4}
	suffix := "v6"
	if v4 {
		suffix = "v4"
	}
	p.kind, p.port = t.check()
	switch {
	case p.kind == CheckLocal:
		suffix += ".local-" + strconv.Itoa(int(p.port))
	case p.kind == CheckConnect:
		suffix += ".connect-" + strconv.Itoa(int(p.port))
	}
	switch {
	case t.onlyLocal():
		p.addresses = ofFamily(t.local, v4)
		p.id = model.PoolID(p.tenant + "/lb-" + shortName(t.lb.Name) + "." + suffix)
		return p
	case from != nil:
		p.source = from
		p.id = model.PoolID(p.tenant + "/" + shortName(from.name.Name) + "." + suffix)
		return p
	default:
		p.addresses = ofFamily(t.own, v4)
	}
	p.id = model.PoolID(p.tenant + "/set-" + setName(p.addresses) + "." + suffix)
	return p
}

// check chooses how the endpoints are probed, and at which port.
func (t *translation) check() (CheckKind, uint16) {
	if !t.lb.LocalOnly {
		return CheckNode, 0
	}
	if t.lb.HealthCheckNodePort > 0 {
		return CheckLocal, uint16(t.lb.HealthCheckNodePort)
	}
	// Without a health port, a node without local endpoints can only be told by its silence on the NodePort.
	for _, candidate := range t.ports {
		if t.lb.Local == nil && candidate.nodePort && candidate.protocol == model.TCP {
			return CheckConnect, candidate.target
		}
	}
	return CheckNode, 0
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
