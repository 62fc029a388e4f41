package translate

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
)

// Used says whose an address is that no AddressPool may cover: a host of the management cluster, a router, or a node that a tenant targets.
type Used map[netip.Addr]string

// UsedByTargets are the targets in these ranges that the lists have and that pass the fence. The fence's VIPs are the addresses of pools that were there
// before the targets. Only what lies in the ranges takes memory: tenants may list millions of targets.
func UsedByTargets(lists iter.Seq[Addresses], tenants map[string]Tenant, fence Fence, ranges []ipam.Range) Used {
	used := Used{}
	for list := range lists {
		tenant, known := tenants[list.Namespace]
		if !known {
			continue
		}
		for _, a := range list.List {
			if listed, err := netip.ParseAddr(a.IP); err != nil || !in(ranges, listed) {
				continue
			}
			address, err := fence.Check(a.IP, tenant)
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

// In names the addresses that lie in the ranges, and whose they are, in their order.
func (u Used) In(ranges []ipam.Range) (named []string) {
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

// CoversUsed is what is wrong with a pool that covers addresses which are used: named as In names them.
func CoversUsed(named []string) Problem {
	return Problem{Reason: ReasonCoversUsed, Field: "spec.addresses", Message: fmt.Sprintf("spec.addresses: covers %s: the pool gives no address, and the nodes among these stay targets, until spec.addresses leaves them out", phrase.Few(named, ", "))}
}

// OwnTargets are the targets that stand in the LoadBalancer itself.
func (lb LoadBalancer) OwnTargets() Addresses {
	return Addresses{ObjectName: lb.ObjectName, List: slices.Concat(lb.own(), lb.local())}
}
