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

// pool says where a pool's endpoints come from. Flush updates its content.
type pool struct {
	id     model.PoolID
	tenant string
	// source is the Addresses object with its addresses. If it is nil, addresses has them.
	source    *source
	addresses []netip.Addr
	v4        bool
	kind      CheckKind
	port      uint16
	users     int
	targets   []Target
	dirty     bool
	// served is the pool in the model as of the last Flush, nil for none. It is replaced as a whole and never changed.
	served *model.Pool
}

// flushPool updates the pool's content, and adds the pool to the changes if it differs.
func (h *Translator) flushPool(p *pool, c *Changes, before map[Target]bool) {
	p.dirty = false
	if p.users == 0 {
		h.setTargets(p, nil, before)
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
	h.setTargets(p, targets, before)
	endpoints := h.endpoints(targets)
	if p.served == nil || !slices.Equal(p.served.Endpoints, endpoints) {
		p.served = &model.Pool{ID: p.id, Tenant: p.tenant, Endpoints: endpoints}
		c.Model.UpsertPools = append(c.Model.UpsertPools, *p.served)
	}
}

func (h *Translator) poolAddresses(p *pool) []netip.Addr {
	if p.source == nil {
		return p.addresses
	}
	r := h.resolve(p.source)
	if r == nil {
		return nil
	}
	addresses := ofFamily(r.usable, p.v4)
	if p.kind == CheckNode {
		return addresses
	}
	// A pool that is checked by a port of one Service is not shared by others.
	kept, _ := truncate(addresses, h.tenants[p.source.name.Namespace].ownEndpointLimit())
	return kept
}

// resolve returns the usable targets of the Addresses object, or nil if the object or its tenant does not exist.
func (h *Translator) resolve(s *source) *resolution {
	if s == nil || s.object == nil {
		return nil
	}
	if s.resolved == nil {
		if tenant, owned := h.tenants[s.name.Namespace]; owned {
			s.resolved = resolve(*s.object, tenant, h.filter)
		}
	}
	return s.resolved
}

// endpoints turns targets into endpoints in canonical order, with their known health. If no endpoint is active, all become
// active: a prober without a network must not take a tenant down.
//
// A new node of a Service with externalTrafficPolicy Local gets no flows before its health check succeeds. kube-proxy may learn of the pod
// seconds after the EndpointSlice has it, and drops packets until then.
func (h *Translator) endpoints(targets []Target) []model.Endpoint {
	endpoints := make([]model.Endpoint, len(targets))
	anyActive := false
	for i, t := range targets {
		health, known := h.health[t]
		if !known && t.Kind == CheckLocal {
			health.State = model.Unhealthy
		}
		endpoints[i] = model.Endpoint{ID: t.Address.String(), Address: t.Address, Weight: max(health.Weight, 1), State: health.State}
		anyActive = anyActive || health.State == model.Active
	}
	if !anyActive {
		for i := range endpoints {
			endpoints[i].State = model.Active
		}
	}
	slices.SortFunc(endpoints, func(a, b model.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return endpoints
}

// setTargets replaces the targets of the pool that need health checks. before collects for each affected target whether it needed checks before.
func (h *Translator) setTargets(p *pool, targets []Target, before map[Target]bool) {
	if slices.Equal(p.targets, targets) {
		return
	}
	for _, t := range slices.Concat(p.targets, targets) {
		if _, found := before[t]; !found {
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

// usePool finds or creates the pool of the LoadBalancer's frontends of one family.
func (h *Translator) usePool(e *entry, t *translation, v4 bool) model.PoolID {
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

// pool returns the pool of one family. Its name says where the endpoints come from and how they are checked, so that LoadBalancers of a tenant
// with the same source and check share it. A pool of endpoints with a ready pod belongs to one LoadBalancer and has its name, so that it stays the
// same pool while pods come and go.
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

// check returns the kind of health check of the endpoints, and its port.
func (t *translation) check() (CheckKind, uint16) {
	if !t.lb.LocalOnly {
		return CheckNode, 0
	}
	if t.lb.HealthCheckNodePort > 0 {
		return CheckLocal, uint16(t.lb.HealthCheckNodePort)
	}
	// Without a health port, only a connection to the NodePort shows whether the node has local endpoints.
	for _, candidate := range t.ports {
		if t.lb.Local == nil && candidate.nodePort && candidate.protocol == model.TCP {
			return CheckConnect, candidate.target
		}
	}
	return CheckNode, 0
}

// shortName shortens names for pools: an object's name may have 253 characters, and kernels store less.
func shortName(name string) string {
	const longest = 24
	if len(name) <= longest {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "ref-" + hex.EncodeToString(sum[:8])
}

// setName returns a short name that depends on the set of addresses only.
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
