package corecheck

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// Honest tenants are served as if there were no hostile tenants. The test applies random changes of all tenants to one hub, and the same changes without those
// of hostile tenants to a second hub. After each change an honest tenant must be the same in both. Hostile tenants may influence others only where the documents
// say so: type influence applies this to the second hub.
func TestATenantIsNotAffectedByHostileTenants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		withHostile, without := newHub(), newHub()
		s := influence{t: t, withHostile: withHostile, without: without, first: map[string]map[netip.Addr]bool{}}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			change := changes().Draw(t, "change")
			withHostile.apply(change)
			if !change.hostile {
				without.apply(change)
			}
			s.apply()
			// Both hubs serve waiting LoadBalancers in the same order: honest tenants, hostile tenants, and then again those that can be served now.
			var deltas, deltasWithout string
			for range 2 {
				deltas, deltasWithout = deltas+withHostile.reconcile(honest)+withHostile.reconcile(hostile), deltasWithout+without.reconcile(honest)
				s.apply()
			}
			for _, tenant := range honest {
				require.Equal(t, without.stateOf(tenant), withHostile.stateOf(tenant), "the state of tenant %s after %s", tenant, change.what)
			}
			require.Equal(t, deltasWithout, deltas, "the deltas of honest tenants after %s", change.what)
			requireSeparateTenants(t, withHostile)
		}
	})
}

// The tenants. The networks of near and far are theirs alone, except that the network of wide contains both. shared and sharer have one network in common, and
// sharer is older.
var (
	honest     = []string{"near", "far", "shared"}
	hostile    = []string{"sharer", "wide"}
	networksOf = map[string][]string{"near": {"10.1.0.0/16"}, "far": {"10.2.0.0/16", "2001:db8:2::/64"}, "shared": {"10.9.0.0/16"}, "sharer": {"10.3.0.0/16", "10.9.0.0/16"}, "wide": {"10.0.0.0/8", "::/0"}}
	created    = map[string]int64{"sharer": 1, "wide": 2, "near": 3, "far": 4, "shared": 5}

	nodesOf    = map[string][]string{"near": {"10.1.0.1", "10.1.0.2", "10.1.0.3"}, "far": {"10.2.0.1", "10.2.0.2", "2001:db8:2::1"}, "shared": {"10.9.0.1", "10.9.0.2", "10.9.0.3"}}
	firstNodes = map[string]string{"near": "10.1.0.1", "far": "10.2.0.1", "shared": "10.9.0.1", "sharer": "10.3.0.1", "wide": "10.8.0.1"}
	// anyNode is what hostile tenants list: nodes of others, hosts of the hub, external addresses, special and invalid addresses.
	anyNode  = slices.Concat(nodesOf["near"], nodesOf["far"], nodesOf["shared"], nodesOf["shared"], []string{"10.3.0.1", "10.7.0.1", "10.7.0.2", "10.8.0.1", "203.0.113.1", "127.0.0.1", "169.254.169.254", "::ffff:10.1.0.1", "fe80::1%eth0", "", "\x1b[31m"})
	hubHosts = map[netip.Addr]string{netip.MustParseAddr("10.7.0.1"): "gateway g", netip.MustParseAddr("10.7.0.2"): "Node n"}

	// Honest tenants get addresses of the first pool, which is never full here, if they request no address. They request addresses of the second pool, and the
	// last pool by its name, which has only one address.
	addressPools = []ipam.Pool{{Name: "free", Ranges: rangesOf("203.0.113.0/24", "2001:db8:f::/120"), AutoAssign: true}, {Name: "named", Ranges: rangesOf("192.0.2.0/30")}, {Name: "one", Ranges: rangesOf("198.18.0.1/32")}}
	requestable  = []string{"192.0.2.0", "192.0.2.1"}
	anyAddress   = []string{"192.0.2.0", "192.0.2.1", "192.0.2.0", "192.0.2.1", "198.18.0.1", "198.18.0.1", "203.0.113.0", "203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8:f::1", "10.1.0.1"}
)

func rangesOf(texts ...string) []ipam.Range {
	ranges, err := ipam.ParseRanges(texts, false)
	if err != nil {
		panic(err)
	}
	return ranges
}

// change is a change by one tenant or by the operator, or of the time.
type change struct {
	what    string
	hostile bool
	do      func(*hub)
}

func changes() *rapid.Generator[change] {
	return rapid.Custom(func(t *rapid.T) change {
		all := slices.Concat(honest, hostile, hostile)
		tenant := rapid.SampledFrom(all).Draw(t, "tenant")
		isHostile := slices.Contains(hostile, tenant)
		switch what := rapid.SampledFrom([]string{"LoadBalancer", "LoadBalancer", "LoadBalancer gone", "Addresses", "Addresses gone", "health", "Tenant", "Tenant gone", "hosts", "time"}).Draw(t, "what"); what {
		case "LoadBalancer":
			lb := balancerOf(t, tenant, isHostile)
			text, err := json.Marshal(lb)
			require.NoError(t, err)
			return change{what + " " + string(text), isHostile, func(h *hub) { copied := lb; h.lbs[lb.ObjectName] = &copied }}
		case "LoadBalancer gone":
			name := model.ObjectName{Namespace: "tenant-" + tenant, Name: rapid.SampledFrom([]string{"one", "two", "three"}).Draw(t, "name")}
			return change{what + " " + name.String(), isHostile, func(h *hub) { h.deleteLoadBalancer(name) }}
		case "Addresses":
			a := translate.Addresses{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: rarely(t, objectNames, "default")}, List: listOf(t, tenant)}
			return change{fmt.Sprint(what, " ", a.ObjectName, a.List), isHostile, func(h *hub) {
				copied := a
				copied.Held = h.addresses[a.ObjectName].Held // which the tenant cannot write
				h.addresses[a.ObjectName] = copied
			}}
		case "Addresses gone":
			name := model.ObjectName{Namespace: "tenant-" + tenant, Name: rarely(t, objectNames, "default")}
			return change{what + " " + name.String(), isHostile, func(h *hub) { delete(h.addresses, name) }}
		case "health":
			target := translate.Target{Tenant: tenant, Address: netip.MustParseAddr(rapid.SampledFrom(slices.Concat(nodesOf["near"], nodesOf["far"], nodesOf["shared"])).Draw(t, "node")),
				Kind: rapid.SampledFrom([]translate.CheckKind{translate.CheckNode, translate.CheckLocal}).Draw(t, "kind")}
			if target.Kind == translate.CheckLocal {
				target.Port = 31000
			}
			health := translate.Health{State: rapid.SampledFrom([]model.EndpointState{model.Active, model.Draining, model.Unhealthy}).Draw(t, "state"), Weight: uint16(rapid.IntRange(0, 3).Draw(t, "weight"))}
			return change{fmt.Sprint(what, " ", target, health), isHostile, func(h *hub) { h.translation.SetHealth(target, health) }}
		case "Tenant", "Tenant gone":
			// Changes by the operator are not hostile. Only hostile tenants are deleted.
			o := tenantOf(t, tenant)
			deleted := what == "Tenant gone" && isHostile
			return change{fmt.Sprint(what, " ", o), false, func(h *hub) { h.setTenant(o, deleted) }}
		case "hosts":
			hosts := maps.Clone(hubHosts)
			if rapid.Bool().Draw(t, "more") {
				hosts[netip.MustParseAddr("10.1.0.3")] = "gateway late"
			}
			return change{what, false, func(h *hub) { h.hosts = hosts; h.translation.SetHosts(hosts) }}
		}
		elapsed := time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second
		return change{fmt.Sprint("time ", elapsed), false, func(h *hub) { h.now = h.now.Add(elapsed); h.allocator.SetTime(h.now) }}
	})
}

func tenantOf(t *rapid.T, name string) translate.Tenant {
	networks := networksOf[name]
	if name == "sharer" {
		networks = networks[:rapid.IntRange(1, 2).Draw(t, "networks")]
	}
	o := translate.Tenant{Name: name, BackendCIDRs: prefixes(networks), Created: created[name], Disabled: oneIn(t, 10, "disabled"), EndpointsPerLoadBalancer: uint32(rapid.IntRange(0, 2).Draw(t, "endpoints"))}
	if rapid.Bool().Draw(t, "limited") {
		o.Limits = ipam.Limits{LoadBalancers: new(int32(rapid.IntRange(0, 3).Draw(t, "loadBalancers"))), Ports: new(int32(rapid.IntRange(1, 5).Draw(t, "ports")))}
	}
	return o
}

func listOf(t *rapid.T, tenant string) (list []translate.Address) {
	nodes := nodesOf[tenant]
	if nodes == nil {
		nodes = anyNode
	}
	for _, ip := range rapid.SliceOfN(rapid.SampledFrom(nodes), 0, 4).Draw(t, "list") {
		a := translate.Address{IP: ip}
		if ip == "" {
			a.Hostname = "node.example.com"
		}
		list = append(list, a)
	}
	return list
}

func balancerOf(t *rapid.T, tenant string, isHostile bool) translate.LoadBalancer {
	lb := loadBalancers().Draw(t, "lb")
	lb.Namespace, lb.VIPs, lb.Requested = "tenant-"+tenant, nil, nil
	if lb.Addresses != nil {
		lb.Addresses = listOf(t, tenant)
	}
	if lb.Local != nil {
		list := listOf(t, tenant)
		lb.Local = &list
	}
	lb.Name = rapid.SampledFrom([]string{"one", "two", "three"}).Draw(t, "name")
	requests, pool, forms := requestable, "one", []string{"any", "any", "address", "pool"}
	if isHostile {
		forms = []string{"any", "address", "address", "pool"}
		requests, pool = anyAddress, rapid.SampledFrom([]string{"free", "named", "one"}).Draw(t, "of")
	}
	switch rapid.SampledFrom(forms).Draw(t, "address") {
	case "address":
		lb.Requested = []netip.Addr{netip.MustParseAddr(rapid.SampledFrom(requests).Draw(t, "requested"))}
	case "pool":
		lb.AddressPool = pool
	}
	return lb
}

// hub is a management cluster: its objects, with the allocations of the controllers and the model of a gateway.
type hub struct {
	translation *translate.Translator
	allocator   *ipam.Allocator
	now         time.Time
	hosts       map[netip.Addr]string
	tenants     map[string]translate.Tenant
	addresses   map[model.ObjectName]translate.Addresses
	lbs         map[model.ObjectName]*translate.LoadBalancer
	// translated are the LoadBalancers as the translation has them.
	translated map[model.ObjectName]translate.LoadBalancer
	refusals   map[model.ObjectName]string
	// served are the tenants of the served frontends.
	served map[model.FrontendKey]string
}

func newHub() *hub {
	h := &hub{translation: translate.NewTranslator(), allocator: ipam.NewAllocator(), now: time.Unix(1_800_000_000, 0), hosts: hubHosts, tenants: map[string]translate.Tenant{},
		addresses: map[model.ObjectName]translate.Addresses{}, lbs: map[model.ObjectName]*translate.LoadBalancer{}, translated: map[model.ObjectName]translate.LoadBalancer{}, refusals: map[model.ObjectName]string{}, served: map[model.FrontendKey]string{}}
	h.allocator.SetPools(addressPools)
	h.allocator.SetTime(h.now)
	h.translation.SetHosts(h.hosts)
	h.translation.SetTargetFilter(translate.TargetFilter{VIPs: externals()})
	for _, name := range slices.Concat(honest, hostile) {
		h.setTenant(translate.Tenant{Name: name, BackendCIDRs: prefixes(networksOf[name]), Created: created[name]}, false)
		a := translate.Addresses{ObjectName: model.ObjectName{Namespace: "tenant-" + name, Name: "default"}, List: []translate.Address{{IP: firstNodes[name]}}}
		h.addresses[a.ObjectName] = a
	}
	h.setOwners()
	return h
}

func externals() (all []ipam.Range) {
	for _, p := range addressPools {
		all = append(all, p.Ranges...)
	}
	return all
}

func (h *hub) setTenant(o translate.Tenant, deleted bool) {
	if !deleted {
		h.tenants[o.Namespace()] = o
		h.translation.SetTenant(o)
		return
	}
	for name := range h.lbs {
		if name.Namespace == o.Namespace() {
			h.deleteLoadBalancer(name)
		}
	}
	maps.DeleteFunc(h.addresses, func(name model.ObjectName, _ translate.Addresses) bool { return name.Namespace == o.Namespace() })
	delete(h.tenants, o.Namespace())
	h.translation.DeleteTenant(o.Name)
}

// deleteLoadBalancer deletes a LoadBalancer. The addresses that it had requested remain reserved for its tenant for some time.
func (h *hub) deleteLoadBalancer(name model.ObjectName) {
	lb := h.lbs[name]
	if lb == nil {
		return
	}
	for _, g := range h.allocator.AllocationsOf(name.String()) {
		if slices.Contains(lb.Requested, g.Address) {
			h.allocator.ReserveWithin(g.Pool, 1000, ipam.Reservation{Address: g.Address, Namespace: name.Namespace, Until: h.now.Add(5 * time.Minute)})
		}
	}
	h.allocator.Release(name.String())
	delete(h.lbs, name)
	delete(h.refusals, name)
}

// apply applies the change, and updates the owners of nodes.
func (h *hub) apply(c change) {
	c.do(h)
	h.setOwners()
}

func (h *hub) nodeOwners() *translate.NodeOwners {
	nodeOwners := translate.NewNodeOwners()
	for _, t := range h.tenants {
		nodeOwners.SetTenant(t)
	}
	for _, a := range h.addresses {
		nodeOwners.SetAddresses(a)
	}
	return nodeOwners
}

func (h *hub) filter() translate.TargetFilter {
	return translate.TargetFilter{Hosts: h.hosts, VIPs: externals(), NodeOwners: h.nodeOwners()}
}

// setOwners records the first tenant that listed a node as its owner, like the controllers.
func (h *hub) setOwners() {
	nodeOwners := h.nodeOwners()
	for name, a := range h.addresses {
		a.Held = slices.DeleteFunc(nodeOwners.AddressesToHold(a), func(address netip.Addr) bool { return h.hosts[address] != "" })
		h.addresses[name] = a
	}
}

// reconcile allocates addresses for the LoadBalancers of these tenants, and returns the delta of honest tenants.
func (h *hub) reconcile(tenants []string) string {
	for range 3 { // an address that one LoadBalancer releases can be allocated to another one
		for _, name := range slices.SortedFunc(maps.Keys(h.lbs), byNamespace) {
			if tenant, _ := translate.TenantOf(name.Namespace); slices.Contains(tenants, tenant) {
				h.allocate(name)
			}
		}
	}
	h.updateTranslation()
	return h.deltaOf(h.translation.Flush())
}

func byNamespace(a, b model.ObjectName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func (h *hub) allocate(name model.ObjectName) {
	lb := h.lbs[name]
	_, refused := translate.Refused(h.check(lb))
	var limits ipam.Limits
	if t, known := h.tenants[name.Namespace]; known {
		limits = t.Limits
	}
	refusal := lb.Allocate(h.allocator, limits, refused)
	h.refusals[name] = ""
	if refusal != nil {
		h.refusals[name] = refusal.Reason + ": " + refusal.Message
	}
	lb.VIPs = nil
	for _, g := range h.allocator.AllocationsOf(name.String()) {
		lb.VIPs = append(lb.VIPs, g.Address)
	}
}

// check returns the problems of a LoadBalancer, like the controllers.
func (h *hub) check(lb *translate.LoadBalancer) []translate.Problem {
	var tenant *translate.Tenant
	var addresses *translate.Addresses
	if t, known := h.tenants[lb.Namespace]; known {
		tenant = &t
	}
	if lb.Reference != nil {
		if a, known := h.addresses[model.ObjectName{Namespace: lb.Namespace, Name: lb.Reference.Name}]; known {
			addresses = &a
		}
	}
	return translate.Check(lb, tenant, addresses, h.filter())
}

// updateTranslation passes all changed objects to the translation.
func (h *hub) updateTranslation() {
	for _, tenant := range slices.Concat(honest, hostile) {
		for _, name := range []string{"one", "two", "three", "four", "five", "default"} {
			key := model.ObjectName{Namespace: "tenant-" + tenant, Name: name}
			if a, exists := h.addresses[key]; exists {
				h.translation.SetAddresses(a)
			} else {
				h.translation.DeleteAddresses(key)
			}
		}
	}
	for name, lb := range h.lbs {
		if before, known := h.translated[name]; !known || !reflect.DeepEqual(before, *lb) {
			h.translation.SetLoadBalancer(*lb)
			h.translated[name] = *lb
		}
	}
	for name := range h.translated {
		if h.lbs[name] == nil {
			h.translation.DeleteLoadBalancer(name)
			delete(h.translated, name)
		}
	}
}

// stateOf returns as text all that concerns a tenant: addresses, problems and records.
func (h *hub) stateOf(tenant string) string {
	var out strings.Builder
	for _, name := range slices.SortedFunc(maps.Keys(h.lbs), byNamespace) {
		if name.Namespace != "tenant-"+tenant {
			continue
		}
		lb := h.lbs[name]
		fmt.Fprintln(&out, name, lb.VIPs, h.refusals[name], h.check(lb), h.translation.Problems(name))
		if lb.AdmittedPorts != nil {
			fmt.Fprintln(&out, "admitted", *lb.AdmittedPorts)
		}
	}
	if t, known := h.tenants["tenant-"+tenant]; known {
		for _, name := range slices.SortedFunc(maps.Keys(h.addresses), byNamespace) {
			if name.Namespace == t.Namespace() {
				fmt.Fprintln(&out, name, translate.CheckAddresses(h.addresses[name], t, h.filter()))
			}
		}
	}
	model := h.translation.Snapshot()
	for _, p := range model.Pools {
		if p.Tenant == tenant {
			fmt.Fprintln(&out, p.Text())
		}
	}
	for _, f := range model.Frontends {
		if f.Tenant == tenant {
			fmt.Fprintln(&out, f.Text())
		}
	}
	fmt.Fprintln(&out, "has", h.allocator.CountOf("tenant-"+tenant))
	return h.normalize(out.String())
}

// deltaOf returns as text the records and targets of honest tenants in a delta.
func (h *hub) deltaOf(c translate.Changes) string {
	var out strings.Builder
	for _, p := range c.Model.UpsertPools {
		if slices.Contains(honest, p.Tenant) {
			fmt.Fprintln(&out, p.Text())
		}
	}
	for _, f := range c.Model.UpsertFrontends {
		if h.served[f.FrontendKey] = f.Tenant; slices.Contains(honest, f.Tenant) {
			fmt.Fprintln(&out, f.Text())
		}
	}
	for _, key := range c.Model.DeleteFrontends {
		if slices.Contains(honest, h.served[key]) {
			fmt.Fprintln(&out, h.served[key], "deletes", key.Protocol, key.Port)
		}
		delete(h.served, key)
	}
	for _, id := range c.Model.DeletePools {
		if slices.Contains(honest, id.Tenant()) {
			fmt.Fprintln(&out, "deletes", id)
		}
	}
	for what, targets := range map[string][]translate.Target{"new target": c.NewTargets, "target gone": c.GoneTargets} {
		for _, target := range targets {
			if slices.Contains(honest, target.Tenant) {
				fmt.Fprintln(&out, what, target)
			}
		}
	}
	return h.normalize(out.String())
}

// normalize sorts the lines of a text, and replaces addresses that honest tenants got without a request by placeholders. Such an address is the next free one
// of the pool (docs/services.md), so it depends on the addresses of other tenants.
func (h *hub) normalize(text string) string {
	var names [][2]string
	for _, name := range slices.SortedFunc(maps.Keys(h.lbs), byNamespace) {
		if tenant, _ := translate.TenantOf(name.Namespace); !slices.Contains(honest, tenant) {
			continue
		}
		for _, vip := range h.lbs[name].VIPs {
			known := slices.ContainsFunc(names, func(n [2]string) bool { return n[0] == vip.String() })
			if addressPools[0].Contains(vip) && !known {
				names = append(names, [2]string{vip.String(), fmt.Sprintf("<%d>", len(names))})
			}
		}
	}
	slices.SortFunc(names, func(a, b [2]string) int { return cmp.Compare(len(b[0]), len(a[0])) })
	var pairs []string
	for _, n := range names {
		pairs = append(pairs, n[0], n[1])
	}
	lines := strings.Split(strings.NewReplacer(pairs...).Replace(text), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// influence applies to the hub without hostile tenants what these may influence by the documents: nodes and addresses belong to the first tenant that lists or
// requests them.
type influence struct {
	t                    *rapid.T
	withHostile, without *hub
	// first are the nodes that a hostile tenant listed first, in a network that it shares with an honest tenant.
	first map[string]map[netip.Addr]bool
}

func (s *influence) apply() {
	s.applyToNodes()
	s.applyToAddresses()
}

// applyToNodes follows docs/tenants.md, "Whose node an address is": a node in a shared network belongs to the tenant whose Addresses listed it first. Addresses
// in a LoadBalancer itself do not count.
func (s *influence) applyToNodes() {
	const namespace = "tenant-sharer"
	lists := func(namespace string, address netip.Addr) bool {
		for name, a := range s.withHostile.addresses {
			if name.Namespace == namespace && slices.ContainsFunc(a.List, func(l translate.Address) bool { return l.IP == address.String() }) {
				return true
			}
		}
		return false
	}
	if s.first[namespace] == nil {
		s.first[namespace] = map[netip.Addr]bool{}
	}
	owned := translate.Addresses{ObjectName: model.ObjectName{Namespace: namespace, Name: "default"}}
	for _, ip := range nodesOf["shared"] {
		address := netip.MustParseAddr(ip)
		allowed := slices.ContainsFunc(s.withHostile.tenants[namespace].BackendCIDRs, func(p netip.Prefix) bool { return p.Contains(address) })
		switch {
		case !allowed || !lists(namespace, address):
			delete(s.first[namespace], address)
		case !lists("tenant-shared", address):
			s.first[namespace][address] = true
		}
		if s.first[namespace][address] {
			owned.List = append(owned.List, translate.Address{IP: ip})
		}
	}
	if s.without.addresses[owned.ObjectName] = owned; len(owned.List) == 0 {
		delete(s.without.addresses, owned.ObjectName)
	}
	s.without.setOwners()
}

// applyToAddresses follows docs/services.md and docs/tenants.md (T5, T24): a requested address belongs to the LoadBalancer that requested it first, and remains
// reserved for its tenant for some time. If a pool has no free address, LoadBalancers wait (S03).
func (s *influence) applyToAddresses() {
	wanted := map[string]netip.Addr{}
	for name := range s.withHostile.lbs {
		tenant, _ := translate.TenantOf(name.Namespace)
		for _, g := range s.withHostile.allocator.AllocationsOf(name.String()) {
			if slices.Contains(hostile, tenant) && g.Pool != "free" {
				wanted[name.Namespace+"/allocation of "+g.Address.String()] = g.Address
			}
		}
	}
	for _, tenant := range hostile {
		for _, p := range addressPools[1:] {
			for _, r := range p.Ranges {
				for address := r.First; address.Compare(r.Last) <= 0; address = address.Next() {
					if owner := "tenant-" + tenant + "/allocation of " + address.String(); !wanted[owner].IsValid() {
						s.without.allocator.Release(owner)
					}
				}
			}
		}
	}
	for _, p := range addressPools[1:] {
		for _, r := range s.withHostile.allocator.ReservationsOf(p.Name) {
			if tenant, _ := translate.TenantOf(r.Namespace); slices.Contains(hostile, tenant) {
				s.without.allocator.Reserve(r)
			}
		}
	}
	for owner, address := range wanted {
		require.False(s.t, s.isReservedForHonest(address), "%s is reserved for an honest tenant, but %s has it", address, owner)
		pool := addressPools[slices.IndexFunc(addressPools, func(p ipam.Pool) bool { return p.Contains(address) })].Name
		s.without.allocator.Allocate(owner, ipam.Request{Requested: []netip.Addr{address}, Pool: pool})
	}
}

func (s *influence) isReservedForHonest(address netip.Addr) bool {
	for _, p := range addressPools {
		for _, r := range s.without.allocator.ReservationsOf(p.Name) {
			if tenant, _ := translate.TenantOf(r.Namespace); r.Address == address && slices.Contains(honest, tenant) {
				return true
			}
		}
	}
	return false
}

// requireSeparateTenants requires that no record of a tenant has an address or a node of another tenant.
func requireSeparateTenants(t *rapid.T, h *hub) {
	snapshot := h.translation.Snapshot()
	filter := h.filter()
	for _, f := range snapshot.Frontends {
		require.Equal(t, "tenant-"+f.Tenant, f.Owner.Namespace, "the owner of %s", f.Text())
		require.Equal(t, f.Tenant, f.Pool.Tenant(), "the pool of %s", f.Text())
		for _, owner := range h.allocator.OwnersOf(f.VIP) {
			require.True(t, strings.HasPrefix(owner, f.Owner.Namespace+"/"), "%s is served for %s, but %s has it", f.VIP, f.Owner, owner)
		}
		require.NotEmpty(t, h.allocator.OwnersOf(f.VIP), "%s is served for %s, but nobody has it", f.VIP, f.Owner)
	}
	for _, p := range snapshot.Pools {
		require.Equal(t, p.Tenant, p.ID.Tenant())
		for _, e := range p.Endpoints {
			_, err := filter.Check(e.Address.String(), h.tenants["tenant-"+p.Tenant])
			require.NoError(t, err, "an endpoint of %s", p.ID)
		}
	}
}
