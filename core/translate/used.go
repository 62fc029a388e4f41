package translate

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
)

// UsedAddresses are the addresses that no AddressPool may cover, with names for their hosts: a host of the management cluster, a router, or a node that a
// tenant targets.
type UsedAddresses map[netip.Addr]string

// UsedByTargets returns the targets of the lists that are in the ranges and that the filter allows. The filter's VIPs have to be the addresses of pools that
// existed before the targets. Only targets in the ranges take memory: tenants may list millions of targets.
func UsedByTargets(lists iter.Seq[Addresses], tenants map[string]Tenant, filter TargetFilter, ranges []ipam.Range) UsedAddresses {
	used := UsedAddresses{}
	for list := range lists {
		tenant, known := tenants[list.Namespace]
		if !known {
			continue
		}
		for _, a := range list.List {
			if listed, err := netip.ParseAddr(a.IP); err != nil || !in(ranges, listed) {
				continue
			}
			address, err := filter.Check(a.IP, tenant)
			if before := used[address]; err == nil && (before == "" || tenant.Name < before) {
				used[address] = tenant.Name
			}
		}
	}
	for address, tenant := range used {
		used[address] = "a node of Tenant " + tenant
	}
	return used
}

func in(ranges []ipam.Range, address netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r ipam.Range) bool { return r.Contains(address) })
}

// In returns the addresses in the ranges with the names of their hosts, sorted.
func (u UsedAddresses) In(ranges []ipam.Range) (named []string) {
	var covered []netip.Addr
	for address := range u {
		if in(ranges, address) {
			covered = append(covered, address)
		}
	}
	slices.SortFunc(covered, netip.Addr.Compare)
	for _, address := range covered {
		named = append(named, fmt.Sprintf("%s (%s)", address, u[address]))
	}
	return named
}

// CoversUsed returns the problem of a pool that covers used addresses. named is the result of In.
func CoversUsed(named []string) Problem {
	return Problem{Reason: ReasonCoversUsed, Field: "spec.addresses", Message: fmt.Sprintf("spec.addresses: covers %s: the pool gives no address, and the nodes among these stay targets, until spec.addresses leaves them out", phrase.Few(named, ", "))}
}

// OwnTargets returns the targets in the LoadBalancer itself.
func (lb LoadBalancer) OwnTargets() Addresses {
	return Addresses{ObjectName: lb.ObjectName, List: slices.Concat(lb.own(), lb.local())}
}
