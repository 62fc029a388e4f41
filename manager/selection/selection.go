// Package selection says which gateways serve which addresses: an AddressPool may choose some of them by their labels.
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

// Selection is not safe for concurrent use.
type Selection struct {
	pools    map[string]pool
	gateways map[string]labels.Set
	records  *records
}

// records are the pools that addresses have been given from. They are the same for all clones.
type records struct {
	of map[netip.Addr]record
	// by whom they are held.
	by map[string][]ipam.Grant
}

type record struct {
	pool    string
	holders int
}

type pool struct {
	ranges   []ipam.Range
	selector labels.Selector
}

// New returns a selection without pools and gateways.
func New() *Selection {
	return &Selection{pools: map[string]pool{}, gateways: map[string]labels.Set{}, records: &records{map[netip.Addr]record{}, map[string][]ipam.Grant{}}}
}

// Clone returns a selection that stays as this one is now.
func (s *Selection) Clone() *Selection {
	return &Selection{pools: maps.Clone(s.pools), gateways: maps.Clone(s.gateways), records: s.records}
}

// SetHolder takes what a holder of addresses has, with the pools that they were given from.
func (s *Selection) SetHolder(name string, grants []ipam.Grant) {
	r := s.records
	for _, g := range r.by[name] {
		if is := r.of[g.Address]; is.holders > 1 {
			r.of[g.Address] = record{is.pool, is.holders - 1}
		} else {
			delete(r.of, g.Address)
		}
	}
	delete(r.by, name)
	for _, g := range grants {
		r.of[g.Address] = record{g.Pool, r.of[g.Address].holders + 1}
		r.by[name] = append(r.by[name], g)
	}
}

// SetPool takes a pool as it stands. One whose selector cannot be read, which the API does not let in, is served by nobody.
func (s *Selection) SetPool(name string, ranges []ipam.Range, chosen *metav1.LabelSelector) {
	selector := labels.Everything()
	if chosen != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(chosen); err != nil {
			selector = labels.Nothing()
		}
	}
	s.pools[name] = pool{ranges, selector}
}

// DeletePool forgets a pool.
func (s *Selection) DeletePool(name string) { delete(s.pools, name) }

// SetGateway takes a gateway's labels, and reports whether they differ from before.
func (s *Selection) SetGateway(name string, set map[string]string) bool {
	before, there := s.gateways[name]
	s.gateways[name] = set
	return !there || !maps.Equal(before, set)
}

// DeleteGateway forgets a gateway. It has no labels then.
func (s *Selection) DeleteGateway(name string) { delete(s.gateways, name) }

// Serving tells which gateways serve something. Nil stands for every one.
type Serving func(gateway string) bool

// By tells whether a gateway serves it.
func (s Serving) By(gateway string) bool { return s == nil || s(gateway) }

// ServingAddress tells which gateways serve an address: all those that the selector of its pool matches, and every one (nil) if that has
// none, or if there is no such pool any more. The pool is the one that the address was given from, unless that has it no more and another one
// does.
func (s *Selection) ServingAddress(address netip.Addr) Serving {
	given := s.records.of[address].pool
	if s.pools[given].contains(address) {
		return s.Serving(given)
	}
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		if s.pools[name].contains(address) {
			return s.Serving(name)
		}
	}
	return s.Serving(given)
}

func (p pool) contains(address netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r ipam.Range) bool { return r.Contains(address) })
}

// Serving tells which gateways serve a pool.
func (s *Selection) Serving(poolName string) Serving {
	p, there := s.pools[poolName]
	if !there || p.selector.Empty() {
		return nil
	}
	return func(gateway string) bool { return p.selector.Matches(s.gateways[gateway]) }
}

// Digest is equal for selections by which every gateway serves the same addresses; it is empty where every gateway serves all of them.
func (s *Selection) Digest() string {
	sum := sha256.New()
	chosen := false
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		p := s.pools[name]
		chosen = chosen || !p.selector.Empty()
		fmt.Fprintln(sum, name, p.ranges, p.selector)
	}
	if !chosen {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(s.gateways)) {
		fmt.Fprintln(sum, name, s.gateways[name])
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
