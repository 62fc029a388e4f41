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

// Ranges is a list of networks of one family. It is one set in the kernel for all frontends with this list. There is no common set for all lists, since
// the kernel's cost of adding an interval to a set grows with the size of the set.
type Ranges struct {
	// Name is a hash of the content, so that the name of an existing set identifies its content.
	Name string
	// Intervals do not overlap and do not touch.
	Intervals []ipam.Range
}

// RangesPrefix is the prefix of the name of each list.
const RangesPrefix = "ranges-"

// RangesOf returns the list of the networks. It depends on the set of addresses only, not on the order of the networks or on how it is divided into
// networks.
func RangesOf(networks []netip.Prefix) Ranges {
	out := Ranges{Intervals: ipam.MergeNetworks(networks)}
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

// Set returns the kernel's set of the list.
func (r Ranges) Set(t *nft.Table, address nft.SetDatatype) *nft.Set {
	return &nft.Set{Table: t, Name: r.Name, KeyType: address, Interval: true}
}

// Elements returns the elements of the set: each interval's first address, and the address behind its last, if there is one.
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

// Add adds the set, and a chain of its name with these rules, to the transaction.
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

// DeleteRanges deletes the set of that name, and its chain, in the transaction.
func DeleteRanges(c *nft.Conn, t *nft.Table, name string) {
	c.DelChain(&nft.Chain{Table: t, Name: name})
	c.DelSet(&nft.Set{Table: t, Name: name})
}
