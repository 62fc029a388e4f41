package nftables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
)

// table is one family's table in the kernel.
type table struct {
	layout layout
	nft    *nft.Table
	sets   map[string]*nft.Set
	state  *state
	open   openCount
	// ends is when dropEnded has looked, closing when dropClosing has.
	ends, closing look
}

// editsPerTransaction bounds a transaction.
const editsPerTransaction = 20000

func newTable(f family, e *egress) *table {
	t := &table{layout: layout{family: f}, nft: &nft.Table{Name: e.nft.Name, Family: f.table}, sets: map[string]*nft.Set{}, state: newState(f)}
	for _, s := range t.layout.sets() {
		set := s.set
		set.Table = t.nft
		t.sets[s.name] = &set
	}
	t.sets[leaveMap(f)] = e.vips(f)
	return t
}

// create adds the table, its sets, counters, chains and rules to the transaction.
func (t *table) create(c *nft.Conn) error {
	c.AddTable(t.nft)
	for _, s := range t.layout.sets() {
		if err := c.AddSet(t.sets[s.name], nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	for _, name := range counters() {
		c.AddObj(&nft.NamedObj{Table: t.nft, Name: name, Type: nft.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	// The version stands in a chain's name, where any tool can see it.
	addVersion(c, t.nft)
	layout, failed := t.withProtocols(c)
	addChains(c, t.nft, layout.chains())
	return *failed
}

// versionChain names the shape of the tables. A process that meets another one replaces the tables in one transaction, so
// that conntrack's NAT never lacks a chain.
const versionChain = "layout-14"

func addVersion(c *nft.Conn, t *nft.Table) { c.AddChain(&nft.Chain{Table: t, Name: versionChain}) }

// withProtocols lets the layout's rules make the anonymous set that each of them needs.
func (t *table) withProtocols(c *nft.Conn) (layout, *error) {
	var failed error
	l := t.layout
	l.protocols = func() *nft.Set {
		set := &nft.Set{Table: t.nft, Anonymous: true, Constant: true, KeyType: nft.TypeInetProto}
		if err := c.AddSet(set, []nft.SetElement{{Key: []byte{unix.IPPROTO_TCP}}, {Key: []byte{unix.IPPROTO_UDP}}}); err != nil {
			failed = errors.Join(failed, err)
		}
		return set
	}
	return l, &failed
}

func addChains(c *nft.Conn, t *nft.Table, chains []chain) {
	for _, ch := range chains {
		added := &nft.Chain{Table: t, Name: ch.name}
		if ch.hook != nil {
			policy := nft.ChainPolicyAccept
			added.Hooknum, added.Type, added.Priority, added.Policy = ch.hook, ch.kind, nft.ChainPriorityRef(ch.priority), &policy
		}
		c.AddChain(added)
		for _, rule := range ch.rules {
			c.AddRule(&nft.Rule{Table: t, Chain: added, Exprs: exprsOf(rule)})
		}
	}
}

// planned is a plan with the table that it is for.
type planned struct {
	*plan
	table *table
}

// transact sends plans as one transaction and, once the kernel has it, takes them over into the state.
func transact(plans []planned) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	batches := map[*table]*batch{}
	for _, p := range plans {
		b := batches[p.table]
		if b == nil {
			b = &batch{vips: map[netip.Addr]int{}, slow: map[netip.Addr]int{}, timeouts: map[time.Duration]bool{}, limits: newLimits(), ranges: rangeChanges{}}
			batches[p.table] = b
		}
		b.gather(p.plan, p.table.state)
	}
	for t, b := range batches {
		if err := b.send(c, t); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return err
	}
	for _, p := range plans {
		p.commit()
	}
	for t, b := range batches {
		b.commit(t.state)
	}
	return nil
}

// batch is the part of a transaction that concerns one table.
type batch struct {
	edits []edit
	// forgotten are elements that may be there, and are not to be.
	forgotten []edit
	vips      map[netip.Addr]int
	slow      map[netip.Addr]int
	timeouts  map[time.Duration]bool
	limits    limits
	ranges    rangeChanges
}

func (b *batch) gather(p *plan, s *state) {
	b.edits, b.forgotten = append(b.edits, p.edits...), append(b.forgotten, p.forgotten...)
	tally(b.vips, p.vips)
	tally(b.slow, p.slow)
	if p.timeout != 0 && !s.timeouts[p.timeout] {
		b.timeouts[p.timeout] = true
	}
	b.limits.merge(s.limits.missing(p.limits))
	b.ranges.add(p.ranges)
}

// send adds the messages: new chains first, then removals, then additions, so that a key may be removed and added again, and chains that
// nothing leads to any more last.
func (b *batch) send(c *nft.Conn, t *table) error {
	layout, failed := t.withProtocols(c)
	for _, timeout := range slices.Sorted(maps.Keys(b.timeouts)) {
		addChains(c, t.nft, layout.affinityChains(timeout))
	}
	if err := b.limits.add(c, t.nft, layout); err != nil {
		return err
	}
	if err := b.ranges.make(c, t.nft, layout, t.state.ranges); err != nil {
		return err
	}
	if err := layout.forget(c, t.nft, b.forgotten); err != nil {
		return err
	}
	if *failed != nil {
		return *failed
	}
	edits := slices.Concat(b.edits, membership(setVIPs, t.state.vips, b.vips), membership(setSlowPath, t.state.slow, b.slow))
	for _, remove := range []bool{true, false} {
		bySet := map[string][]nft.SetElement{}
		for _, e := range edits {
			if e.remove == remove {
				bySet[e.set] = append(bySet[e.set], e.element)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(bySet)) {
			for chunk := range slices.Chunk(bySet[name], elements.PerMessage) {
				if err := t.change(c, name, remove, chunk); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	}
	b.ranges.drop(c, t.nft, t.state.ranges)
	return nil
}

func (t *table) change(c *nft.Conn, set string, remove bool, elements []nft.SetElement) error {
	if remove {
		return c.SetDeleteElements(t.sets[set], elements)
	}
	return c.SetAddElements(t.sets[set], elements)
}

func (b *batch) commit(s *state) {
	tally(s.vips, b.vips)
	tally(s.slow, b.slow)
	maps.Copy(s.timeouts, b.timeouts)
	s.limits.merge(b.limits)
	b.ranges.commit(s.ranges)
}

// tally adds the changes to the numbers of users, and removes keys without users.
func tally[K comparable](held, changes map[K]int) {
	for of, change := range changes {
		if held[of] += change; held[of] == 0 {
			delete(held, of)
		}
	}
}

// membership brings into the set what begins to be used by the changes, and out of it what is used no more.
func membership(set string, held, changes map[netip.Addr]int) (edits []edit) {
	for address, change := range changes {
		before := held[address]
		if was, is := before > 0, before+change > 0; was != is {
			edits = append(edits, edit{set: set, remove: was, element: nft.SetElement{Key: address.AsSlice()}})
		}
	}
	return edits
}
