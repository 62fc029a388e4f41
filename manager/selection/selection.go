// Package selection decides which gateways serve an address: an AddressPool may select gateways by their labels.
package selection

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"kubelb.k8c.io/core/ipam"
)

// Selection knows the AddressPools, the gateways' labels and the allocations. It is not safe for concurrent use.
type Selection struct {
	pools       map[string]pool
	gateways    map[string]labels.Set
	allocations *allocations
}

// allocations are the allocated addresses, each with its AddressPool. All clones share them.
type allocations struct {
	byAddress map[netip.Addr]allocation
	byOwner   map[string][]ipam.Allocation
}

type allocation struct {
	pool   string
	owners int
}

type pool struct {
	ranges   []ipam.Range
	selector labels.Selector
}

// New returns a selection without AddressPools and gateways.
func New() *Selection {
	return &Selection{pools: map[string]pool{}, gateways: map[string]labels.Set{}, allocations: &allocations{map[netip.Addr]allocation{}, map[string][]ipam.Allocation{}}}
}

// Clone returns a copy that later changes of AddressPools and gateways do not affect.
func (s *Selection) Clone() *Selection {
	return &Selection{pools: maps.Clone(s.pools), gateways: maps.Clone(s.gateways), allocations: s.allocations}
}

// SetAllocations replaces the allocations of an owner of addresses.
func (s *Selection) SetAllocations(owner string, allocations []ipam.Allocation) {
	all := s.allocations
	for _, g := range all.byOwner[owner] {
		if former := all.byAddress[g.Address]; former.owners > 1 {
			all.byAddress[g.Address] = allocation{former.pool, former.owners - 1}
		} else {
			delete(all.byAddress, g.Address)
		}
	}
	delete(all.byOwner, owner)
	for _, g := range allocations {
		all.byAddress[g.Address] = allocation{g.Pool, all.byAddress[g.Address].owners + 1}
		all.byOwner[owner] = append(all.byOwner[owner], g)
	}
}

// SetAddressPool sets an AddressPool. If its selector is invalid, which the API refuses, no gateway serves it.
func (s *Selection) SetAddressPool(name string, ranges []ipam.Range, labelSelector *metav1.LabelSelector) {
	selector := labels.Everything()
	if labelSelector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(labelSelector); err != nil {
			selector = labels.Nothing()
		}
	}
	s.pools[name] = pool{ranges, selector}
}

// DeleteAddressPool removes an AddressPool.
func (s *Selection) DeleteAddressPool(name string) { delete(s.pools, name) }

// SetGateway sets a gateway's labels, and returns whether they have changed.
func (s *Selection) SetGateway(name string, set map[string]string) bool {
	before, known := s.gateways[name]
	s.gateways[name] = set
	return !known || !maps.Equal(before, set)
}

// DeleteGateway removes a gateway. A gateway that is not there has no labels.
func (s *Selection) DeleteGateway(name string) { delete(s.gateways, name) }

// Serving reports whether a gateway serves an address or an AddressPool. Nil means that every gateway does.
type Serving func(gateway string) bool

// By reports whether the gateway serves it.
func (s Serving) By(gateway string) bool { return s == nil || s(gateway) }

// ServingAddress returns the gateways that serve an address: those that its AddressPool selects. It returns nil if the AddressPool has no selector or
// does not exist. The AddressPool of an address is the one that it was allocated from, unless only another AddressPool contains the address now.
func (s *Selection) ServingAddress(address netip.Addr) Serving {
	allocatedFrom := s.allocations.byAddress[address].pool
	if s.pools[allocatedFrom].contains(address) {
		return s.Serving(allocatedFrom)
	}
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		if s.pools[name].contains(address) {
			return s.Serving(name)
		}
	}
	return s.Serving(allocatedFrom)
}

func (p pool) contains(address netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r ipam.Range) bool { return r.Contains(address) })
}

// Serving returns the gateways that serve an AddressPool.
func (s *Selection) Serving(poolName string) Serving {
	p, known := s.pools[poolName]
	if !known || p.selector.Empty() {
		return nil
	}
	return func(gateway string) bool { return p.selector.Matches(s.gateways[gateway]) }
}

// Digest returns a hash that is equal for two selections by which every gateway serves the same addresses. It is empty if no AddressPool has a
// selector.
func (s *Selection) Digest() string {
	sum := sha256.New()
	selective := false
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		p := s.pools[name]
		selective = selective || !p.selector.Empty()
		fmt.Fprintln(sum, name, p.ranges, p.selector)
	}
	if !selective {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(s.gateways)) {
		fmt.Fprintln(sum, name, s.gateways[name])
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
