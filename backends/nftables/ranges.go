package nftables

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// rangesChain has a source that the list allows go on, and drops what comes from others.
func (l layout) rangesChain(list string) chain {
	return chain{name: list, rules: [][]statement{
		{l.sourceIn(list), backToCaller()},
		{count(counterNotAllowed), drop()},
	}}
}

// rangesSet is the list as nft writes it.
func (l layout) rangesSet(list elements.Ranges) keySet {
	address := "ipv6_addr"
	if l.v4 {
		address = "ipv4_addr"
	}
	return keySet{name: list.Name, text: "type " + address + "; flags interval", set: *list.Set(nil, l.address)}
}

// rangeChanges are lists of source ranges, by name, that more or fewer frontends use.
type rangeChanges map[string]rangeChange

type rangeChange struct {
	// list has its content where frontends begin to use it.
	list  elements.Ranges
	users int
}

func (r rangeChanges) add(others rangeChanges) {
	for name, change := range others {
		r.change(name, change.list, change.users)
	}
}

func (r rangeChanges) change(name string, list elements.Ranges, users int) {
	sum := r[name]
	if list.Name != "" {
		sum.list = list
	}
	sum.users += users
	r[name] = sum
}

// make adds lists that nobody used so far to the transaction.
func (r rangeChanges) make(c *nft.Conn, t *nft.Table, l layout, held map[string]int) error {
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if held[name] > 0 || r[name].users <= 0 {
			continue
		}
		var rules [][]expr.Any
		for _, rule := range l.rangesChain(name).rules {
			rules = append(rules, exprsOf(rule))
		}
		if err := r[name].list.Add(c, t, l.address, rules...); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// drop has the transaction remove lists that nobody uses any more.
func (r rangeChanges) drop(c *nft.Conn, t *nft.Table, held map[string]int) {
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if held[name] > 0 && held[name]+r[name].users == 0 {
			elements.DeleteRanges(c, t, name)
		}
	}
}

func (r rangeChanges) commit(held map[string]int) {
	users := map[string]int{}
	for name, change := range r {
		users[name] = change.users
	}
	tally(held, users)
}

// size is how many elements come with lists that are not held yet.
func (r rangeChanges) size(held map[string]int) int {
	n := 0
	for name, change := range r {
		if held[name] == 0 {
			n += 2 * len(change.list.Intervals)
		}
	}
	return n
}

// planRanges plans the frontend's source ranges.
func (s *state) planRanges(out *plan, f model.Frontend, old, next *frontendState) {
	var list elements.Ranges
	if f.Restricted {
		list = elements.RangesOf(f.SourceRanges)
	}
	if next.ranges = list.Name; next.ranges == old.ranges {
		return
	}
	key := elements.Frontend(f.FrontendKey)
	planRangesGone(out, key, old, next)
	if next.ranges != "" {
		out.goTo(mapRanges, key, expr.VerdictGoto, next.ranges)
		out.useRanges(next.ranges, list, 1)
	}
}

// planRangesGone plans that the frontend has other source ranges than it had.
func planRangesGone(out *plan, key []byte, old, next *frontendState) {
	out.member(setRestricted, key, old.ranges != "", next.ranges != "")
	if old.ranges != "" {
		out.remove(mapRanges, key)
		out.useRanges(old.ranges, elements.Ranges{}, -1)
	}
}

func (p *plan) useRanges(name string, list elements.Ranges, users int) {
	if p.ranges == nil {
		p.ranges = rangeChanges{}
	}
	p.ranges.change(name, list, users)
}

// adoptRanges reads the list off the chain that a frontend's element leads to.
func (s *state) adoptRanges(f *frontendState, e nft.SetElement) error {
	name, err := chainOf(e)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(name, elements.RangesPrefix) {
		return fmt.Errorf("chain %q is no list of source ranges", name)
	}
	f.ranges = name
	s.ranges[name]++
	return nil
}
