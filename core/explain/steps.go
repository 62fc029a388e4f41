package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// explanation is the state of a call of Explain. Its methods are the steps, in their order.
type explanation struct {
	out       Output
	tenants   map[string]translate.Tenant
	allocator *ipam.Allocator
	filter    translate.TargetFilter
}

func (e *explanation) problem(kind, tenant string, name model.ObjectName, problems ...translate.Problem) {
	for _, p := range problems {
		e.out.Problems = append(e.out.Problems, Problem{Kind: kind, Tenant: tenant, ObjectName: name, Problem: p})
	}
}

// cluster does what the tenant's CCM does.
func (e *explanation) cluster(c Cluster) {
	namespace := translate.TenantNamespacePrefix + c.Tenant
	addressType := cmp.Or(c.NodeAddressType, "InternalIP")
	nodes := map[string]translate.Node{}
	for _, n := range c.Nodes {
		nodes[n.Name] = n
	}
	e.out.Addresses = append(e.out.Addresses, translate.Addresses{
		ObjectName: model.ObjectName{Namespace: namespace, Name: translate.DefaultAddresses}, List: translate.NodeAddresses(c.Nodes, addressType)})
	byService := map[model.ObjectName][]translate.Slice{}
	for _, s := range c.EndpointSlices {
		service := model.ObjectName{Namespace: s.Namespace, Name: s.Service}
		byService[service] = append(byService[service], s.Slice)
	}
	services := sorted(c.Services, func(a, b translate.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, s := range services {
		name := model.ObjectName{Namespace: s.Namespace, Name: s.Name}
		if reason, owned := translate.OwnsWithReason(s, c.ClassRequired); !owned {
			e.out.Problems = append(e.out.Problems, Problem{Kind: "Service", Tenant: c.Tenant, ObjectName: name, Problem: reason, NotOurs: true})
			continue
		}
		lb, problems := translate.DesiredLoadBalancer(s, nodes, byService[name], addressType, namespace)
		e.problem("Service", c.Tenant, name, problems...)
		if _, refused := translate.Refused(problems); !refused {
			e.out.LoadBalancers = append(e.out.LoadBalancers, lb)
		}
	}
}

// pools does what the manager does with AddressPools. A pool that is invalid or overlaps another does not affect the others.
func (e *explanation) pools(pools []AddressPool) {
	var usable []ipam.Pool
	for _, lb := range e.out.LoadBalancers {
		for _, g := range allocations(lb) {
			e.filter.VIPs = append(e.filter.VIPs, ipam.Range{First: g.Address, Last: g.Address})
		}
	}
	var all []ipam.Range
	for _, p := range pools {
		ranges, _ := ipam.ParseRanges(p.Addresses, p.AvoidNetworkAddresses) // errors are reported below
		all = append(all, ranges...)
	}
	used := translate.UsedByTargets(slices.Values(e.targets()), e.tenants, e.filter, all)
	for _, p := range pools {
		ranges, err := ipam.ParseRanges(p.Addresses, p.AvoidNetworkAddresses)
		if err != nil {
			e.problem("AddressPool", "", model.ObjectName{Name: p.Name}, translate.Problem{Reason: "InvalidAddresses", Field: "spec.addresses", Message: "spec.addresses: " + err.Error()})
			continue
		}
		pool := ipam.Pool{Name: p.Name, Ranges: ranges, Tenants: p.Tenants, AutoAssign: p.AutoAssign, Priority: p.Priority, Draining: p.Draining}
		if covered := used.In(ranges); len(covered) > 0 {
			pool.Suspended = true
			e.problem("AddressPool", "", model.ObjectName{Name: p.Name}, translate.CoversUsed(covered))
		} else {
			e.filter.VIPs = append(e.filter.VIPs, ranges...)
		}
		usable = append(usable, pool)
	}
	for _, o := range e.allocator.SetPools(usable) {
		e.problem("AddressPool", "", model.ObjectName{Name: o.Pool}, translate.Problem{Reason: "Overlap", Field: "spec.addresses", Message: fmt.Sprintf(
			"overlaps AddressPool %s at %s: it gives no address until one of them is changed", o.Other, o.Addresses)})
	}
}

// targets returns all lists of targets.
func (e *explanation) targets() []translate.Addresses {
	lists := slices.Clone(e.out.Addresses)
	for _, lb := range e.out.LoadBalancers {
		lists = append(lists, lb.OwnTargets())
	}
	return lists
}

// allocate does what the manager does with LoadBalancers: it adopts the allocations on record, then allocates new addresses.
func (e *explanation) allocate() {
	for _, lb := range e.out.LoadBalancers {
		for _, conflict := range e.allocator.Adopt(lb.ObjectName.String(), lb.Claim(), allocations(lb)) {
			e.problem("LoadBalancer", "", lb.ObjectName, translate.Problem{Reason: translate.ReasonConflict, Field: "status.addresses", Message: conflict.Error(), Partial: true})
		}
	}
	refused, limits := make([]bool, len(e.out.LoadBalancers)), make([]ipam.Limits, len(e.out.LoadBalancers))
	for i := range e.out.LoadBalancers {
		lb := &e.out.LoadBalancers[i]
		tenant, addresses := e.contextOf(*lb)
		_, refused[i] = translate.Refused(translate.Check(lb, tenant, addresses, e.filter))
		if tenant != nil {
			limits[i] = tenant.Limits
		}
	}
	// A LoadBalancer may get an address that another one has released, which may go on for several rounds: until nothing
	// changes any more, and at most as many rounds as there are LoadBalancers.
	refusals := make([]*ipam.Refusal, len(refused))
	changed := true
	for round := 0; changed && round <= len(refused); round++ {
		changed = false
		for i := range e.out.LoadBalancers {
			lb := &e.out.LoadBalancers[i]
			ports := e.allocator.PortsOf(lb.ObjectName.String())
			refusals[i] = lb.Allocate(e.allocator, limits[i], refused[i])
			held := e.held(lb.ObjectName)
			changed = changed || !slices.Equal(held, lb.VIPs) || ports != e.allocator.PortsOf(lb.ObjectName.String())
			lb.VIPs = held
		}
	}
	for i, refusal := range refusals {
		if refusal != nil {
			e.problem("LoadBalancer", "", e.out.LoadBalancers[i].ObjectName, translate.Problem{Reason: refusal.Reason, Message: refusal.Message})
		}
	}
}

func (e *explanation) held(name model.ObjectName) []netip.Addr {
	var out []netip.Addr
	for _, g := range e.allocator.AllocationsOf(name.String()) {
		out = append(out, g.Address)
	}
	return out
}

func allocations(lb translate.LoadBalancer) []ipam.Allocation {
	var out []ipam.Allocation
	for _, vip := range lb.VIPs {
		if vip.IsValid() && vip.Zone() == "" && !vip.Is4In6() {
			out = append(out, ipam.Allocation{Address: vip})
		}
	}
	return out
}

func (e *explanation) contextOf(lb translate.LoadBalancer) (*translate.Tenant, *translate.Addresses) {
	var tenant *translate.Tenant
	if t, known := e.tenants[lb.Namespace]; known {
		tenant = &t
	}
	if lb.Reference == nil {
		return tenant, nil
	}
	wanted := model.ObjectName{Namespace: lb.Namespace, Name: lb.Reference.Name}
	at, found := slices.BinarySearchFunc(e.out.Addresses, wanted, func(a translate.Addresses, name model.ObjectName) int { return compareNames(a.ObjectName, name) })
	if !found {
		return tenant, nil
	}
	return tenant, &e.out.Addresses[at]
}

// model does what every gateway does.
func (e *explanation) model(health []Health) {
	hub := translate.NewTranslator()
	hub.SetTargetFilter(e.filter)
	for _, t := range e.tenants {
		hub.SetTenant(t)
	}
	for _, a := range e.out.Addresses {
		hub.SetAddresses(a)
	}
	for _, lb := range e.out.LoadBalancers {
		hub.SetLoadBalancer(lb)
	}
	for _, target := range hub.Flush().NewTargets {
		for _, found := range health {
			if found.Address == target.Address && found.Port == target.Port {
				hub.SetHealth(target, translate.Health{State: found.State, Weight: found.Weight})
			}
		}
	}
	hub.Flush()
	for _, lb := range e.out.LoadBalancers {
		e.problem("LoadBalancer", "", lb.ObjectName, hub.Problems(lb.ObjectName)...)
	}
	e.out.Model = hub.Snapshot()
	e.out.Text = e.out.Model.Text()
}
