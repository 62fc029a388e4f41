package translate

import (
	"fmt"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
)

// Used says whose an address is that no AddressPool may cover: a host of the management cluster, a router, or a node that a tenant targets.
type Used map[netip.Addr]string

// UsedByTargets are the targets of the lists that pass the fence. The fence's VIPs are the addresses of pools that were there before the targets.
func UsedByTargets(lists []Addresses, tenants map[string]Tenant, fence Fence) Used {
	used := Used{}
	for _, list := range lists {
		tenant, known := tenants[list.Namespace]
		if !known {
			continue
		}
		for _, a := range list.List {
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

// In names the addresses that lie in the ranges, and whose they are, in their order.
func (u Used) In(ranges []ipam.Range) (named []string) {
	var in []netip.Addr
	for address := range u {
		if slices.ContainsFunc(ranges, func(r ipam.Range) bool { return r.Contains(address) }) {
			in = append(in, address)
		}
	}
	slices.SortFunc(in, netip.Addr.Compare)
	for _, address := range in {
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
	own := Addresses{ObjectName: lb.ObjectName, List: lb.Addresses}
	if lb.Local != nil {
		own.List = slices.Concat(own.List, *lb.Local)
	}
	return own
}
