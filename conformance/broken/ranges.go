package broken

import (
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// inRanges returns faults in source ranges. The edits get a copy of a frontend's ranges, which has at least one.
func inRanges() []Mutation {
	ranges := func(name string, edit func(f *model.Frontend, ranges []netip.Prefix) []netip.Prefix) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"source-ranges"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			if len(f.SourceRanges) > 0 {
				f.SourceRanges = edit(f, slices.Clone(f.SourceRanges))
			}
			return true
		})}
	}
	each := func(name string, edit func(netip.Prefix) netip.Prefix) Mutation {
		return ranges(name, func(_ *model.Frontend, ranges []netip.Prefix) []netip.Prefix {
			for i, r := range ranges {
				ranges[i] = edit(r).Masked()
			}
			return ranges
		})
	}
	without := func(name string, lost func(netip.Prefix) bool) Mutation {
		return ranges(name, func(_ *model.Frontend, ranges []netip.Prefix) []netip.Prefix { return slices.DeleteFunc(ranges, lost) })
	}
	everybody := func(r netip.Prefix) bool { return r.Bits() == 0 }
	single := func(r netip.Prefix) bool { return r.IsSingleIP() }
	return []Mutation{
		each("widens-ranges-to-24", func(r netip.Prefix) netip.Prefix {
			return netip.PrefixFrom(r.Addr(), min(r.Bits(), r.Addr().BitLen()-8))
		}),
		each("widens-ranges-by-a-bit", func(r netip.Prefix) netip.Prefix { return netip.PrefixFrom(r.Addr(), max(r.Bits()-1, 0)) }),
		each("narrows-ranges-by-a-bit", func(r netip.Prefix) netip.Prefix {
			return netip.PrefixFrom(r.Addr(), min(r.Bits()+1, r.Addr().BitLen()))
		}),
		each("takes-single-addresses-as-pairs", func(r netip.Prefix) netip.Prefix {
			return netip.PrefixFrom(r.Addr(), min(r.Bits(), r.Addr().BitLen()-1))
		}),
		each("takes-every-range-as-a-single-address", func(r netip.Prefix) netip.Prefix { return only(r.Addr()) }),
		each("takes-the-internet-as-a-single-address", func(r netip.Prefix) netip.Prefix {
			if everybody(r) {
				return only(r.Addr())
			}
			return r
		}),
		without("ignores-the-internet-as-a-range", everybody),
		without("ignores-single-addresses", single),
		without("ignores-networks", func(r netip.Prefix) bool { return !single(r) }),
		without("ignores-ranges-shorter-than-8", func(r netip.Prefix) bool { return r.Bits() < 8 }),
		ranges("loses-the-third-range", func(_ *model.Frontend, ranges []netip.Prefix) []netip.Prefix {
			if len(ranges) > 2 {
				ranges = slices.Delete(ranges, 2, 3)
			}
			return ranges
		}),
		ranges("loses-the-last-range", func(_ *model.Frontend, ranges []netip.Prefix) []netip.Prefix { return ranges[:max(len(ranges)-1, 1)] }),
		ranges("uses-the-first-range-only", func(_ *model.Frontend, ranges []netip.Prefix) []netip.Prefix { return ranges[:1] }),
		ranges("uses-100-ranges-only", func(_ *model.Frontend, ranges []netip.Prefix) []netip.Prefix { return ranges[:min(len(ranges), 100)] }),
		ranges("a-range-inside-another-replaces-it", func(_ *model.Frontend, ranges []netip.Prefix) []netip.Prefix {
			return slices.DeleteFunc(slices.Clone(ranges), func(r netip.Prefix) bool {
				return slices.ContainsFunc(ranges, func(o netip.Prefix) bool { return o.Bits() > r.Bits() && r.Overlaps(o) })
			})
		}),
		ranges("restricts-tcp-only", func(f *model.Frontend, ranges []netip.Prefix) []netip.Prefix {
			f.Restricted = f.Protocol == model.TCP
			if !f.Restricted {
				return nil
			}
			return ranges
		}),
		ranges("restricts-udp-only", func(f *model.Frontend, ranges []netip.Prefix) []netip.Prefix {
			f.Restricted = f.Protocol == model.UDP
			if !f.Restricted {
				return nil
			}
			return ranges
		}),
		{Name: "keeps-former-ranges", CaughtBy: []string{"source-ranges"}, change: editFrontends(func(m *memory, f *model.Frontend) {
			former := m.served[f.FrontendKey]
			if former.Restricted && f.Restricted {
				f.SourceRanges = slices.Compact(slices.SortedFunc(slices.Values(slices.Concat(former.SourceRanges, f.SourceRanges)), model.ComparePrefix))
			}
			m.served[f.FrontendKey] = *f
		})},
		{Name: "ignores-changes-of-ranges", CaughtBy: []string{"source-ranges"}, change: editFrontends(func(m *memory, f *model.Frontend) {
			if former, known := m.served[f.FrontendKey]; known {
				f.Restricted, f.SourceRanges = former.Restricted, former.SourceRanges
			}
			m.served[f.FrontendKey] = *f
		})},
	}
}

// editFrontends edits each frontend, and loses none.
func editFrontends(edit func(*memory, *model.Frontend)) func(*memory, *dataplane.Change) {
	return frontends(func(m *memory, f *model.Frontend) bool {
		edit(m, f)
		return true
	})
}

// only returns the network that has one address.
func only(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
