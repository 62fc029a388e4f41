package elements

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/core/ipam"
)

// Ranges is a list of networks of one family, as a set that the kernel holds once for all frontends that have it. A set for each list, since
// what the kernel does to take an element into a set of intervals for all of them grows with all that are in it.
type Ranges struct {
	// Name tells the content, so that whoever finds the set knows what is in it.
	Name string
	// Intervals do not overlap and do not touch.
	Intervals []ipam.Range
}

// RangesPrefix begins the name of each list.
const RangesPrefix = "ranges-"

// RangesOf makes the list of the networks. The networks' order, and how they are cut, make no difference.
func RangesOf(networks []netip.Prefix) Ranges {
	out := Ranges{Intervals: ipam.Merged(networks)}
	digest := sha256.New()
	for _, i := range out.Intervals {
		digest.Write(i.First.AsSlice())
		digest.Write(i.Last.AsSlice())
	}
	out.Name = RangesPrefix + hex.EncodeToString(digest.Sum(nil)[:16])
	return out
}

// Network returns the interval as a network, and false if no network has exactly its addresses.
func Network(i ipam.Range) (netip.Prefix, bool) {
	for bits := 0; bits <= i.First.BitLen(); bits++ {
		if p := netip.PrefixFrom(i.First, bits); ipam.RangeOf(p) == i {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Set is the kernel's set of the list.
func (r Ranges) Set(t *nft.Table, address nft.SetDatatype) *nft.Set {
	return &nft.Set{Table: t, Name: r.Name, KeyType: address, Interval: true}
}

// Elements are those of the set: each interval's first address, and the one behind its last, if there is one.
func (r Ranges) Elements() []nft.SetElement {
	var out []nft.SetElement
	for _, i := range r.Intervals {
		out = append(out, nft.SetElement{Key: i.First.AsSlice()})
		if behind := i.Last.Next(); behind.IsValid() {
			out = append(out, nft.SetElement{Key: behind.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// Add has the transaction make the set, and a chain of its name with these rules.
func (r Ranges) Add(c *nft.Conn, t *nft.Table, address nft.SetDatatype, rules ...[]expr.Any) error {
	set := r.Set(t, address)
	if err := c.AddSet(set, nil); err != nil {
		return err
	}
	for chunk := range slices.Chunk(r.Elements(), PerMessage) {
		if err := c.SetAddElements(set, chunk); err != nil {
			return err
		}
	}
	chain := c.AddChain(&nft.Chain{Table: t, Name: r.Name})
	for _, rule := range rules {
		c.AddRule(&nft.Rule{Table: t, Chain: chain, Exprs: rule})
	}
	return nil
}

// DeleteRanges has the transaction remove the set of that name, and its chain.
func DeleteRanges(c *nft.Conn, t *nft.Table, name string) {
	c.DelChain(&nft.Chain{Table: t, Name: name})
	c.DelSet(&nft.Set{Table: t, Name: name})
}
