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

// rangesChain returns for sources in the list, and drops packets from others.
func (l layout) rangesChain(list string) chain {
	return chain{name: list, rules: [][]statement{
		{l.sourceIn(list), returnToCaller()},
		{count(counterNotAllowed), drop()},
	}}
}

// rangesSet returns the set of the list.
func (l layout) rangesSet(list elements.Ranges) keySet {
	address := "ipv6_addr"
	if l.v4 {
		address = "ipv4_addr"
	}
	return keySet{name: list.Name, text: "type " + address + "; flags interval", set: *list.Set(nil, l.address)}
}

// rangeChanges are changes of the numbers of users of lists of source ranges, by the lists' names.
type rangeChanges map[string]rangeChange

type rangeChange struct {
	// list has the content if frontends begin to use the list.
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

// addNew adds lists with their first user to the transaction.
func (r rangeChanges) addNew(c *nft.Conn, t *nft.Table, l layout, existing map[string]int) error {
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if existing[name] > 0 || r[name].users <= 0 {
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

// deleteUnused deletes lists without users in the transaction.
func (r rangeChanges) deleteUnused(c *nft.Conn, t *nft.Table, existing map[string]int) {
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if existing[name] > 0 && existing[name]+r[name].users == 0 {
			elements.DeleteRanges(c, t, name)
		}
	}
}

func (r rangeChanges) commit(existing map[string]int) {
	users := map[string]int{}
	for name, change := range r {
		users[name] = change.users
	}
	tally(existing, users)
}

// size returns the number of elements of new lists.
func (r rangeChanges) size(existing map[string]int) int {
	n := 0
	for name, change := range r {
		if existing[name] == 0 {
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
	replaceRanges(out, key, old, next)
	if next.ranges != "" {
		out.goTo(mapRanges, key, expr.VerdictGoto, next.ranges)
		out.useRanges(next.ranges, list, 1)
	}
}

// replaceRanges plans that the frontend does not use its former list of source ranges any more.
func replaceRanges(out *plan, key []byte, old, next *frontendState) {
	out.setMember(setRestricted, key, old.ranges != "", next.ranges != "")
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

// adoptRanges reads a frontend's list from the chain of its element.
func (s *state) adoptRanges(f *frontendState, e nft.SetElement) error {
	name, err := chainOf(e)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(name, elements.RangesPrefix) {
		return fmt.Errorf("chain %q is not a list of source ranges", name)
	}
	f.ranges = name
	s.ranges[name]++
	return nil
}
