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
	// ends is the last scan of dropEnded, closing that of dropClosing.
	ends, closing scan
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
	t.sets[egressVIPMap(f)] = e.vips(f)
	return t
}

// create adds the table with its sets, counters, chains and rules to the transaction.
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
	// The version is the name of a chain, so that every tool can see it.
	addVersion(c, t.nft)
	layout, failed := t.withProtocols(c)
	addChains(c, t.nft, layout.chains())
	return *failed
}

// versionChain is the version of the tables' layout. Tables of another version are replaced in one transaction, so that there
// is always a NAT chain.
const versionChain = "layout-15"

func addVersion(c *nft.Conn, t *nft.Table) { c.AddChain(&nft.Chain{Table: t, Name: versionChain}) }

// withProtocols returns the layout with a function that creates the anonymous set that each rule with ports needs. The error is that of the function.
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

// planned is a plan and its table.
type planned struct {
	*plan
	table *table
}

// transact sends plans as one transaction. Once the kernel has it, it commits them to the state.
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
		b.add(p.plan, p.table.state)
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

// batch is the part of a transaction for one table.
type batch struct {
	edits []edit
	// toUncount are elements to delete, which may not exist.
	toUncount []edit
	vips      map[netip.Addr]int
	slow      map[netip.Addr]int
	timeouts  map[time.Duration]bool
	limits    limits
	ranges    rangeChanges
}

func (b *batch) add(p *plan, s *state) {
	b.edits, b.toUncount = append(b.edits, p.edits...), append(b.toUncount, p.toUncount...)
	tally(b.vips, p.vips)
	tally(b.slow, p.slow)
	if p.timeout != 0 && !s.timeouts[p.timeout] {
		b.timeouts[p.timeout] = true
	}
	b.limits.merge(s.limits.missing(p.limits))
	b.ranges.add(p.ranges)
}

// send adds the messages to the transaction: first new chains, then removals, then additions, so that a key may be removed and added again, and last
// the removal of unused chains.
func (b *batch) send(c *nft.Conn, t *table) error {
	layout, failed := t.withProtocols(c)
	for _, timeout := range slices.Sorted(maps.Keys(b.timeouts)) {
		addChains(c, t.nft, layout.affinityChains(timeout))
	}
	if err := b.limits.add(c, t.nft, layout); err != nil {
		return err
	}
	if err := b.ranges.addNew(c, t.nft, layout, t.state.ranges); err != nil {
		return err
	}
	if err := layout.deleteCounted(c, t.nft, b.toUncount); err != nil {
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
	b.ranges.deleteUnused(c, t.nft, t.state.ranges)
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
func tally[K comparable](users, changes map[K]int) {
	for key, change := range changes {
		if users[key] += change; users[key] == 0 {
			delete(users, key)
		}
	}
}

// membership adds addresses to the set that get their first user by the changes, and removes those that lose their last.
func membership(set string, users, changes map[netip.Addr]int) (edits []edit) {
	for address, change := range changes {
		n := users[address]
		if before, after := n > 0, n+change > 0; before != after {
			edits = append(edits, edit{set: set, remove: before, element: nft.SetElement{Key: address.AsSlice()}})
		}
	}
	return edits
}
