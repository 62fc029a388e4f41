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

// What honest tenants' objects become does not depend on what hostile ones do: a history of changes of all of them is played beside the same
// history without the hostile ones' steps, and after each step both look alike to an honest tenant. What documents say one tenant's claim decides is the
// one thing that a shade of the hostile ones has in the latter, see shade.
func TestNothingOfATenantDependsOnAnotherOnesDoing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		is, without := newHistory(), newHistory()
		s := shade{t: t, is: is, without: without, first: map[string]map[netip.Addr]bool{}}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			change := changes().Draw(t, "change")
			is.take(change)
			if !change.hostile {
				without.take(change)
			}
			s.fall()
			// Who waits is served in both in one order: honest ones, those that are hostile, and who then can be.
			var told, toldWithout string
			for range 2 {
				told, toldWithout = told+is.serve(honest)+is.serve(hostile), toldWithout+without.serve(honest)
				s.fall()
			}
			for _, tenant := range honest {
				require.Equal(t, without.looks(tenant), is.looks(tenant), "what tenant %s has after %s", tenant, change.what)
			}
			require.Equal(t, toldWithout, told, "what dataplanes are told of honest tenants after %s", change.what)
			requireApart(t, is)
		}
	})
}

// The tenants. Networks of near and far are their own ones, though wide's has both in it; shared and sharer have one in common, and sharer is the older one.
var (
	honest     = []string{"near", "far", "shared"}
	hostile    = []string{"sharer", "wide"}
	networksOf = map[string][]string{"near": {"10.1.0.0/16"}, "far": {"10.2.0.0/16", "2001:db8:2::/64"}, "shared": {"10.9.0.0/16"}, "sharer": {"10.3.0.0/16", "10.9.0.0/16"}, "wide": {"10.0.0.0/8", "::/0"}}
	created    = map[string]int64{"sharer": 1, "wide": 2, "near": 3, "far": 4, "shared": 5}

	nodesOf    = map[string][]string{"near": {"10.1.0.1", "10.1.0.2", "10.1.0.3"}, "far": {"10.2.0.1", "10.2.0.2", "2001:db8:2::1"}, "shared": {"10.9.0.1", "10.9.0.2", "10.9.0.3"}}
	firstNodes = map[string]string{"near": "10.1.0.1", "far": "10.2.0.1", "shared": "10.9.0.1", "sharer": "10.3.0.1", "wide": "10.8.0.1"}
	// anyNode is what hostile tenants list: others' nodes, hosts of the hub, external addresses, and what is none.
	anyNode  = slices.Concat(nodesOf["near"], nodesOf["far"], nodesOf["shared"], nodesOf["shared"], []string{"10.3.0.1", "10.7.0.1", "10.7.0.2", "10.8.0.1", "203.0.113.1", "127.0.0.1", "169.254.169.254", "::ffff:10.1.0.1", "fe80::1%eth0", "", "\x1b[31m"})
	hubHosts = map[netip.Addr]string{netip.MustParseAddr("10.7.0.1"): "gateway g", netip.MustParseAddr("10.7.0.2"): "Node n"}

	// Unasked who is honest gets addresses of the first pool, which is never full here; who names the last one gets its only address. Of the second one
	// addresses are given by name.
	poolsOfAll = []ipam.Pool{{Name: "free", Ranges: rangesOf("203.0.113.0/24", "2001:db8:f::/120"), AutoAssign: true}, {Name: "named", Ranges: rangesOf("192.0.2.0/30")}, {Name: "one", Ranges: rangesOf("198.18.0.1/32")}}
	byName     = []string{"192.0.2.0", "192.0.2.1"}
	anyAddress = []string{"192.0.2.0", "192.0.2.1", "192.0.2.0", "192.0.2.1", "198.18.0.1", "198.18.0.1", "203.0.113.0", "203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8:f::1", "10.1.0.1"}
)

func rangesOf(texts ...string) []ipam.Range {
	ranges, err := ipam.ParseRanges(texts, false)
	if err != nil {
		panic(err)
	}
	return ranges
}

// change is a step of one tenant, of the operator, or of time.
type change struct {
	what    string
	hostile bool
	do      func(*history)
}

func changes() *rapid.Generator[change] {
	return rapid.Custom(func(t *rapid.T) change {
		all := slices.Concat(honest, hostile, hostile)
		tenant := rapid.SampledFrom(all).Draw(t, "tenant")
		is := slices.Contains(hostile, tenant)
		switch what := rapid.SampledFrom([]string{"LoadBalancer", "LoadBalancer", "LoadBalancer gone", "Addresses", "Addresses gone", "health", "Tenant", "Tenant gone", "hosts", "time"}).Draw(t, "what"); what {
		case "LoadBalancer":
			lb := balancerOf(t, tenant, is)
			text, err := json.Marshal(lb)
			require.NoError(t, err)
			return change{what + " " + string(text), is, func(h *history) { own := lb; h.lbs[lb.ObjectName] = &own }}
		case "LoadBalancer gone":
			name := model.ObjectName{Namespace: "tenant-" + tenant, Name: rapid.SampledFrom([]string{"one", "two", "three"}).Draw(t, "name")}
			return change{what + " " + name.String(), is, func(h *history) { h.end(name) }}
		case "Addresses":
			a := translate.Addresses{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: rarely(t, objectNames, "default")}, List: listOf(t, tenant)}
			return change{fmt.Sprint(what, " ", a.ObjectName, a.List), is, func(h *history) {
				own := a
				own.Held = h.addresses[a.ObjectName].Held // which the tenant cannot write
				h.addresses[a.ObjectName] = own
			}}
		case "Addresses gone":
			name := model.ObjectName{Namespace: "tenant-" + tenant, Name: rarely(t, objectNames, "default")}
			return change{what + " " + name.String(), is, func(h *history) { delete(h.addresses, name) }}
		case "health":
			target := translate.Target{Tenant: tenant, Address: netip.MustParseAddr(rapid.SampledFrom(slices.Concat(nodesOf["near"], nodesOf["far"], nodesOf["shared"])).Draw(t, "node")),
				Kind: rapid.SampledFrom([]translate.CheckKind{translate.CheckNode, translate.CheckLocal}).Draw(t, "kind")}
			if target.Kind == translate.CheckLocal {
				target.Port = 31000
			}
			health := translate.Health{State: rapid.SampledFrom([]model.EndpointState{model.Active, model.Draining, model.Unhealthy}).Draw(t, "state"), Weight: uint16(rapid.IntRange(0, 3).Draw(t, "weight"))}
			return change{fmt.Sprint(what, " ", target, health), is, func(h *history) { h.hub.SetHealth(target, health) }}
		case "Tenant", "Tenant gone":
			// The operator's word about a hostile tenant is its doing here; that about an honest one is the operator's.
			o := tenantOf(t, tenant)
			gone := what == "Tenant gone" && is
			return change{fmt.Sprint(what, " ", o), false, func(h *history) { h.tenant(o, gone) }}
		case "hosts":
			some := maps.Clone(hubHosts)
			if rapid.Bool().Draw(t, "more") {
				some[netip.MustParseAddr("10.1.0.3")] = "gateway late"
			}
			return change{what, false, func(h *history) { h.hosts = some; h.hub.SetHosts(some) }}
		}
		later := time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second
		return change{fmt.Sprint("time ", later), false, func(h *history) { h.now = h.now.Add(later); h.book.At(h.now) }}
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
	requests, named, asks := byName, "one", []string{"any", "any", "by name", "of a pool"}
	if isHostile {
		asks = []string{"any", "by name", "by name", "of a pool"}
		requests, named = anyAddress, rapid.SampledFrom([]string{"free", "named", "one"}).Draw(t, "of")
	}
	switch rapid.SampledFrom(asks).Draw(t, "address") {
	case "by name":
		lb.Requested = []netip.Addr{netip.MustParseAddr(rapid.SampledFrom(requests).Draw(t, "requested"))}
	case "of a pool":
		lb.AddressPool = named
	}
	return lb
}

// history is a management cluster: the objects that there are, with what the controllers' and a gateway's parts make of them.
type history struct {
	hub       *translate.Hub
	book      *ipam.Allocator
	now       time.Time
	hosts     map[netip.Addr]string
	tenants   map[string]translate.Tenant
	addresses map[model.ObjectName]translate.Addresses
	lbs       map[model.ObjectName]*translate.LoadBalancer
	known     map[model.ObjectName]translate.LoadBalancer
	refusals  map[model.ObjectName]string
	served    map[model.FrontendKey]string
}

func newHistory() *history {
	h := &history{hub: translate.NewHub(), book: ipam.NewAllocator(), now: time.Unix(1_800_000_000, 0), hosts: hubHosts, tenants: map[string]translate.Tenant{},
		addresses: map[model.ObjectName]translate.Addresses{}, lbs: map[model.ObjectName]*translate.LoadBalancer{}, known: map[model.ObjectName]translate.LoadBalancer{}, refusals: map[model.ObjectName]string{}, served: map[model.FrontendKey]string{}}
	h.book.SetPools(poolsOfAll)
	h.book.At(h.now)
	h.hub.SetHosts(h.hosts)
	h.hub.SetFence(translate.Fence{VIPs: externals()})
	for _, name := range slices.Concat(honest, hostile) {
		h.tenant(translate.Tenant{Name: name, BackendCIDRs: prefixes(networksOf[name]), Created: created[name]}, false)
		a := translate.Addresses{ObjectName: model.ObjectName{Namespace: "tenant-" + name, Name: "default"}, List: []translate.Address{{IP: firstNodes[name]}}}
		h.addresses[a.ObjectName] = a
	}
	h.hold()
	return h
}

func externals() (all []ipam.Range) {
	for _, p := range poolsOfAll {
		all = append(all, p.Ranges...)
	}
	return all
}

func (h *history) tenant(o translate.Tenant, gone bool) {
	if !gone {
		h.tenants[o.Namespace()] = o
		h.hub.SetTenant(o)
		return
	}
	for name := range h.lbs {
		if name.Namespace == o.Namespace() {
			h.end(name)
		}
	}
	maps.DeleteFunc(h.addresses, func(name model.ObjectName, _ translate.Addresses) bool { return name.Namespace == o.Namespace() })
	delete(h.tenants, o.Namespace())
	h.hub.DeleteTenant(o.Name)
}

// end deletes a LoadBalancer; what it had asked for by name is kept for its tenant for a while.
func (h *history) end(name model.ObjectName) {
	lb := h.lbs[name]
	if lb == nil {
		return
	}
	for _, g := range h.book.Held(name.String()) {
		if slices.Contains(lb.Requested, g.Address) {
			h.book.ReserveOf(g.Pool, 1000, ipam.Reservation{Address: g.Address, Namespace: name.Namespace, Until: h.now.Add(5 * time.Minute)})
		}
	}
	h.book.Release(name.String())
	delete(h.lbs, name)
	delete(h.refusals, name)
}

// take has the change happen, and the hub know whose which node is.
func (h *history) take(c change) {
	c.do(h)
	h.hold()
}

func (h *history) claims() *translate.Claims {
	claims := translate.NewClaims()
	for _, t := range h.tenants {
		claims.SetTenant(t)
	}
	for _, a := range h.addresses {
		claims.SetAddresses(a)
	}
	return claims
}

func (h *history) fence() translate.Fence {
	return translate.Fence{Hosts: h.hosts, VIPs: externals(), Claims: h.claims()}
}

// hold has on record who was the first to list a node, as the controllers do.
func (h *history) hold() {
	claims := h.claims()
	for name, a := range h.addresses {
		a.Held = slices.DeleteFunc(claims.ToHold(a), func(address netip.Addr) bool { return h.hosts[address] != "" })
		h.addresses[name] = a
	}
}

// serve gives these tenants what they ask for, as far as that can be, and returns what dataplanes are told of honest ones.
func (h *history) serve(tenants []string) string {
	for range 3 { // what one gives back another one gets
		for _, name := range slices.SortedFunc(maps.Keys(h.lbs), byNamespace) {
			if tenant, _ := translate.TenantOf(name.Namespace); slices.Contains(tenants, tenant) {
				h.allocate(name)
			}
		}
	}
	h.tell()
	return h.told(h.hub.Flush())
}

func byNamespace(a, b model.ObjectName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func (h *history) allocate(name model.ObjectName) {
	lb := h.lbs[name]
	_, refused := translate.Refused(h.check(lb))
	var limits ipam.Limits
	if t, known := h.tenants[name.Namespace]; known {
		limits = t.Limits
	}
	refusal := lb.Allocate(h.book, limits, refused)
	h.refusals[name] = ""
	if refusal != nil {
		h.refusals[name] = refusal.Reason + ": " + refusal.Message
	}
	lb.VIPs = nil
	for _, g := range h.book.Held(name.String()) {
		lb.VIPs = append(lb.VIPs, g.Address)
	}
}

// check is what the controllers find out about a LoadBalancer.
func (h *history) check(lb *translate.LoadBalancer) []translate.Problem {
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
	return translate.Check(lb, tenant, addresses, h.fence())
}

// tell has the gateway's hub know of all objects as they are.
func (h *history) tell() {
	for _, tenant := range slices.Concat(honest, hostile) {
		for _, name := range []string{"one", "two", "three", "four", "five", "default"} {
			key := model.ObjectName{Namespace: "tenant-" + tenant, Name: name}
			if a, is := h.addresses[key]; is {
				h.hub.SetAddresses(a)
			} else {
				h.hub.DeleteAddresses(key)
			}
		}
	}
	for name, lb := range h.lbs {
		if before, is := h.known[name]; !is || !reflect.DeepEqual(before, *lb) {
			h.hub.SetLoadBalancer(*lb)
			h.known[name] = *lb
		}
	}
	for name := range h.known {
		if h.lbs[name] == nil {
			h.hub.DeleteLoadBalancer(name)
			delete(h.known, name)
		}
	}
}

// looks is all that there is of a tenant: what it is told, and what is forwarded for it.
func (h *history) looks(tenant string) string {
	var out strings.Builder
	for _, name := range slices.SortedFunc(maps.Keys(h.lbs), byNamespace) {
		if name.Namespace != "tenant-"+tenant {
			continue
		}
		lb := h.lbs[name]
		fmt.Fprintln(&out, name, lb.VIPs, h.refusals[name], h.check(lb), h.hub.Problems(name))
		if lb.AdmittedPorts != nil {
			fmt.Fprintln(&out, "admitted", *lb.AdmittedPorts)
		}
	}
	if t, known := h.tenants["tenant-"+tenant]; known {
		for _, name := range slices.SortedFunc(maps.Keys(h.addresses), byNamespace) {
			if name.Namespace == t.Namespace() {
				fmt.Fprintln(&out, name, translate.CheckAddresses(h.addresses[name], t, h.fence()))
			}
		}
	}
	model := h.hub.Snapshot()
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
	fmt.Fprintln(&out, "has", h.book.CountOf("tenant-"+tenant))
	return h.plain(out.String())
}

// told is what a change tells dataplanes and probes of honest tenants.
func (h *history) told(c translate.Changes) string {
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
	for what, targets := range map[string][]translate.Target{"asks": c.NewTargets, "asks no more": c.GoneTargets} {
		for _, target := range targets {
			if slices.Contains(honest, target.Tenant) {
				fmt.Fprintln(&out, what, target)
			}
		}
	}
	return h.plain(out.String())
}

// plain is the text with names for addresses that honest tenants have got unasked, and its lines in order: docs/services.md says that such a one is
// the next free one of the pool, so that it depends on which ones others have.
func (h *history) plain(text string) string {
	var names [][2]string
	for _, name := range slices.SortedFunc(maps.Keys(h.lbs), byNamespace) {
		if tenant, _ := translate.TenantOf(name.Namespace); !slices.Contains(honest, tenant) {
			continue
		}
		for _, vip := range h.lbs[name].VIPs {
			known := slices.ContainsFunc(names, func(n [2]string) bool { return n[0] == vip.String() })
			if poolsOfAll[0].Contains(vip) && !known {
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

// shade is what is left of the hostile tenants where they are not: what documents say that it is who comes first.
type shade struct {
	t           *rapid.T
	is, without *history
	// first are the nodes that a hostile tenant was the first to list, of a network that it has in common with an honest one.
	first map[string]map[netip.Addr]bool
}

func (s *shade) fall() {
	s.fallOnNodes()
	s.fallOnAddresses()
}

// fallOnNodes: docs/tenants.md, "Whose node an address is": where several are named alike, an address is that one's that was the first to list it among
// its Addresses; what stands in a LoadBalancer itself counts for nothing.
func (s *shade) fallOnNodes() {
	const namespace = "tenant-sharer"
	lists := func(namespace string, address netip.Addr) bool {
		for name, a := range s.is.addresses {
			if name.Namespace == namespace && slices.ContainsFunc(a.List, func(l translate.Address) bool { return l.IP == address.String() }) {
				return true
			}
		}
		return false
	}
	if s.first[namespace] == nil {
		s.first[namespace] = map[netip.Addr]bool{}
	}
	shaded := translate.Addresses{ObjectName: model.ObjectName{Namespace: namespace, Name: "default"}}
	for _, ip := range nodesOf["shared"] {
		address := netip.MustParseAddr(ip)
		may := slices.ContainsFunc(s.is.tenants[namespace].BackendCIDRs, func(p netip.Prefix) bool { return p.Contains(address) })
		switch {
		case !may || !lists(namespace, address):
			delete(s.first[namespace], address)
		case !lists("tenant-shared", address):
			s.first[namespace][address] = true
		}
		if s.first[namespace][address] {
			shaded.List = append(shaded.List, translate.Address{IP: ip})
		}
	}
	if s.without.addresses[shaded.ObjectName] = shaded; len(shaded.List) == 0 {
		delete(s.without.addresses, shaded.ObjectName)
	}
	s.without.hold()
}

// fallOnAddresses: docs/services.md and docs/tenants.md (T5, T24): an address that was asked for by name is that one's that was the first to ask, and is kept
// for its tenant for a while; a pool that has no free address gives none (S03).
func (s *shade) fallOnAddresses() {
	wanted := map[string]netip.Addr{}
	for name := range s.is.lbs {
		tenant, _ := translate.TenantOf(name.Namespace)
		for _, g := range s.is.book.Held(name.String()) {
			if slices.Contains(hostile, tenant) && g.Pool != "free" {
				wanted[name.Namespace+"/shade of "+g.Address.String()] = g.Address
			}
		}
	}
	for _, tenant := range hostile {
		for _, p := range poolsOfAll[1:] {
			for _, r := range p.Ranges {
				for address := r.First; address.Compare(r.Last) <= 0; address = address.Next() {
					if holder := "tenant-" + tenant + "/shade of " + address.String(); !wanted[holder].IsValid() {
						s.without.book.Release(holder)
					}
				}
			}
		}
	}
	for _, p := range poolsOfAll[1:] {
		for _, r := range s.is.book.Reserved(p.Name) {
			if tenant, _ := translate.TenantOf(r.Namespace); slices.Contains(hostile, tenant) {
				s.without.book.Reserve(r)
			}
		}
	}
	for holder, address := range wanted {
		require.False(s.t, s.keptForAnHonestOne(address), "%s is kept for an honest tenant, and is %s's", address, holder)
		pool := poolsOfAll[slices.IndexFunc(poolsOfAll, func(p ipam.Pool) bool { return p.Contains(address) })].Name
		s.without.book.Allocate(holder, ipam.Wish{Requested: []netip.Addr{address}, Pool: pool})
	}
}

func (s *shade) keptForAnHonestOne(address netip.Addr) bool {
	for _, p := range poolsOfAll {
		for _, r := range s.without.book.Reserved(p.Name) {
			if tenant, _ := translate.TenantOf(r.Namespace); r.Address == address && slices.Contains(honest, tenant) {
				return true
			}
		}
	}
	return false
}

// requireApart: no record of a tenant names what is another one's.
func requireApart(t *rapid.T, h *history) {
	snapshot := h.hub.Snapshot()
	fence := h.fence()
	for _, f := range snapshot.Frontends {
		require.Equal(t, "tenant-"+f.Tenant, f.Owner.Namespace, "the owner of %s", f.Text())
		require.Equal(t, f.Tenant, f.Pool.Tenant(), "the pool of %s", f.Text())
		for _, holder := range h.book.Holders(f.VIP) {
			require.True(t, strings.HasPrefix(holder, f.Owner.Namespace+"/"), "%s is forwarded for %s and is %s's", f.VIP, f.Owner, holder)
		}
		require.NotEmpty(t, h.book.Holders(f.VIP), "%s is forwarded for %s and nobody's", f.VIP, f.Owner)
	}
	for _, p := range snapshot.Pools {
		require.Equal(t, p.Tenant, p.ID.Tenant())
		for _, e := range p.Endpoints {
			_, err := fence.Check(e.Address.String(), h.tenants["tenant-"+p.Tenant])
			require.NoError(t, err, "an endpoint of %s", p.ID)
		}
	}
}
