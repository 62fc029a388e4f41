// Package ipam decides which external address a LoadBalancer gets. It does no I/O and reads no clock. From the pools, the
// addresses in use and a request it makes a decision, or a refusal with a reason.
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

// RangeOf returns the network as a range.
func RangeOf(network netip.Prefix) Range {
	first := network.Masked().Addr()
	bytes := first.AsSlice()
	for bit := network.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return Range{first, last}
}

// MergeNetworks returns the addresses of the networks as ranges in ascending order. The ranges do not overlap or touch. Networks with the same addresses
// have the same result, whatever their order and sizes.
func MergeNetworks(networks []netip.Prefix) (merged []Range) {
	ranges := make([]Range, len(networks))
	for i, n := range networks {
		ranges[i] = RangeOf(n)
	}
	slices.SortFunc(ranges, func(a, b Range) int { return a.First.Compare(b.First) })
	for _, r := range ranges {
		if n := len(merged); n > 0 && merged[n-1].touches(r.First) {
			merged[n-1].Last = maxAddr(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// touches reports whether an address, which must not be before the range, is in it or directly behind it.
func (r Range) touches(a netip.Addr) bool { return a.Compare(r.Last) <= 0 || r.Last.Next() == a }

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
	// AutoAssign allows to give addresses to requests that name neither pool nor address.
	AutoAssign bool
	// Priority is the order in which pools give addresses, the highest first. Of pools with equal priorities the first in the list gives first.
	Priority int32
	// Draining stops the pool from giving new addresses. Its allocations stay.
	Draining bool
	// Suspended is the same as Draining, for as long as the pool covers addresses of hosts or nodes.
	Suspended bool
	// ReserveFor is how long an address that was requested by name is reserved for its tenant after it is released.
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

// ParseRanges reads CIDRs and ranges (first-last). avoidNetworkAddresses leaves out the first and last address of an IPv4
// CIDR, and the first address of an IPv6 CIDR, if the CIDR has more than two addresses. Ranges of one pool must not overlap.
func ParseRanges(entries []string, avoidNetworkAddresses bool) ([]Range, error) {
	var ranges []Range
	for _, entry := range entries {
		r, err := parseRange(entry, avoidNetworkAddresses)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", entry, err)
		}
		if r.Overlaps(ipv4Mapped()) {
			return nil, fmt.Errorf("%q contains IPv4-mapped addresses (::ffff:0:0/96, RFC 4291 section 2.5.5.2), which no network carries; write them as IPv4 addresses", entry)
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
		return Range{}, fmt.Errorf("the first address must be of the same family as the last, and not higher")
	}
	return Range{a, b}, nil
}

// ipv4Mapped returns the range of the IPv4-mapped IPv6 addresses.
func ipv4Mapped() Range {
	first := netip.IPv6Unspecified().As16()
	first[10], first[11] = 0xff, 0xff
	last := first
	last[12], last[13], last[14], last[15] = 0xff, 0xff, 0xff, 0xff
	return Range{netip.AddrFrom16(first), netip.AddrFrom16(last)}
}

// Overlap says that a pool has addresses of another pool.
type Overlap struct{ Pool, Other, Addresses string }

// Overlaps finds the pools that overlap a pool before them in the list, which keeps the addresses.
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

func (p Pool) hasFamily(family Family) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return FamilyOf(r.First) == family })
}

// nextAddress returns the pool's next address of the family. After the last comes the first again.
func (p Pool) nextAddress(at netip.Addr, family Family) (netip.Addr, bool) {
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
