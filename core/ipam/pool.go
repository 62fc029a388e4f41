// Package ipam decides which external address a LoadBalancer gets. It does no I/O and reads no clock: pools, what is in
// use and a wish go in, a decision or a reason comes out.
package ipam

import (
	"cmp"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Range is a closed interval of addresses of one family.
type Range struct{ First, Last netip.Addr }

// RangeOf is the network as a range.
func RangeOf(network netip.Prefix) Range {
	first := network.Masked().Addr()
	bytes := first.AsSlice()
	for bit := network.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return Range{first, last}
}

// Merged are the networks as ranges in ascending order, of which no two overlap or touch. The networks' order, and how they are cut, make no difference.
func Merged(networks []netip.Prefix) (merged []Range) {
	ranges := make([]Range, len(networks))
	for i, n := range networks {
		ranges[i] = RangeOf(n)
	}
	slices.SortFunc(ranges, func(a, b Range) int { return a.First.Compare(b.First) })
	for _, r := range ranges {
		if n := len(merged); n > 0 && merged[n-1].reaches(r.First) {
			merged[n-1].Last = maxAddr(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// reaches reports whether an address that is not before the range is in it or right behind it.
func (r Range) reaches(a netip.Addr) bool { return a.Compare(r.Last) <= 0 || r.Last.Next() == a }

// Contains reports whether the address lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Overlaps reports whether the ranges share an address.
func (r Range) Overlaps(o Range) bool {
	return r.First.BitLen() == o.First.BitLen() && r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}

// size is the number of addresses in the range.
func (r Range) size() *big.Int {
	first, last := new(big.Int).SetBytes(r.First.AsSlice()), new(big.Int).SetBytes(r.Last.AsSlice())
	return last.Sub(last, first).Add(last, big.NewInt(1))
}

// String returns first-last.
func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// Pool is a set of external addresses and the tenants that may use it.
type Pool struct {
	Name   string
	Ranges []Range
	// Tenants may use the pool; empty means all.
	Tenants []string
	// AutoAssign: addresses may be given to those who ask for none in particular.
	AutoAssign bool
	// Priority: pools of a higher one give addresses first; of equal ones the one that was there first does.
	Priority int32
	// Draining: the pool gives no address any more. Those that are held stay.
	Draining bool
	// Suspended is Draining for as long as the pool covers addresses of hosts or nodes.
	Suspended bool
	// ReserveFor is how long an address that was asked for by name is kept for its tenant.
	ReserveFor time.Duration
}

// Allows reports whether the tenant may use the pool.
func (p Pool) Allows(tenant string) bool {
	return len(p.Tenants) == 0 || slices.Contains(p.Tenants, tenant)
}

// Contains reports whether the address belongs to the pool.
func (p Pool) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return r.Contains(a) })
}

// ParseRanges reads CIDRs and ranges (first-last). With avoidNetworkAddresses the first and last address of an IPv4 CIDR
// with more than two addresses, and the first of an IPv6 CIDR likewise, are left out. Ranges of one pool must not overlap.
func ParseRanges(entries []string, avoidNetworkAddresses bool) ([]Range, error) {
	var ranges []Range
	for _, entry := range entries {
		r, err := parseRange(entry, avoidNetworkAddresses)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", entry, err)
		}
		if r.Overlaps(mapped()) {
			return nil, fmt.Errorf("%q contains IPv4-mapped addresses (::ffff:0:0/96, RFC 4291 section 2.5.5.2), which no network carries; write them as IPv4", entry)
		}
		for _, other := range ranges {
			if r.Overlaps(other) {
				return nil, fmt.Errorf("%q overlaps %s of the same pool; remove one of them", entry, other)
			}
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func parseRange(entry string, avoidNetworkAddresses bool) (Range, error) {
	if first, last, ok := strings.Cut(entry, "-"); ok {
		return parseFirstLast(first, last)
	}
	prefix, err := netip.ParsePrefix(entry)
	if err != nil {
		return Range{}, fmt.Errorf("neither a CIDR nor a range first-last: %w", err)
	}
	r := RangeOf(prefix)
	if avoidNetworkAddresses && prefix.Addr().BitLen()-prefix.Bits() > 1 {
		r.First = r.First.Next()
		if r.First.Is4() {
			r.Last = r.Last.Prev()
		}
	}
	return r, nil
}

func parseFirstLast(first, last string) (Range, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(first))
	if err != nil {
		return Range{}, err
	}
	b, err := netip.ParseAddr(strings.TrimSpace(last))
	if err != nil {
		return Range{}, err
	}
	if a.BitLen() != b.BitLen() || a.Zone()+b.Zone() != "" || a.Compare(b) > 0 {
		return Range{}, fmt.Errorf("the first address must be of the last one's family and not above it")
	}
	return Range{a, b}, nil
}

// mapped are the IPv6 addresses that stand for IPv4 ones.
func mapped() Range {
	first := netip.IPv6Unspecified().As16()
	first[10], first[11] = 0xff, 0xff
	last := first
	last[12], last[13], last[14], last[15] = 0xff, 0xff, 0xff, 0xff
	return Range{netip.AddrFrom16(first), netip.AddrFrom16(last)}
}

// Overlap says that a pool claims addresses of another one.
type Overlap struct{ Pool, Other, Addresses string }

// Overlaps finds the pools that overlap one before them in the list: the earlier keeps the addresses.
func Overlaps(pools []Pool) []Overlap {
	var found []Overlap
	for i, pool := range pools {
		if o, ok := firstOverlap(pool, pools[:i]); ok {
			found = append(found, o)
		}
	}
	return found
}

func firstOverlap(pool Pool, earlier []Pool) (Overlap, bool) {
	for _, other := range earlier {
		for _, r := range pool.Ranges {
			for _, taken := range other.Ranges {
				if r.Overlaps(taken) {
					shared := Range{maxAddr(r.First, taken.First), minAddr(r.Last, taken.Last)}
					return Overlap{pool.Name, other.Name, shared.String()}, true
				}
			}
		}
	}
	return Overlap{}, false
}

func minAddr(a, b netip.Addr) netip.Addr {
	return slices.MinFunc([]netip.Addr{a, b}, func(x, y netip.Addr) int { return cmp.Compare(x.Compare(y), 0) })
}

func maxAddr(a, b netip.Addr) netip.Addr {
	return slices.MaxFunc([]netip.Addr{a, b}, func(x, y netip.Addr) int { return cmp.Compare(x.Compare(y), 0) })
}

func (p Pool) has(family Family) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return FamilyOf(r.First) == family })
}

// after returns the pool's address of the family that follows, the first again after the last.
func (p Pool) after(at netip.Addr, family Family) (netip.Addr, bool) {
	var ranges []Range
	for _, r := range p.Ranges {
		if FamilyOf(r.First) == family {
			ranges = append(ranges, r)
		}
	}
	if len(ranges) == 0 {
		return netip.Addr{}, false
	}
	for i, r := range ranges {
		if at.IsValid() && r.Contains(at) {
			if at != r.Last {
				return at.Next(), true
			}
			return ranges[(i+1)%len(ranges)].First, true
		}
	}
	return ranges[0].First, true
}
