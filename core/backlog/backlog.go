// Package backlog deals out what a dataplane is still to be told in changes of bounded size, in which tenants take turns: who has little is not
// behind one who has much.
package backlog

import (
	"cmp"
	"container/heap"
	"iter"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Backlog holds records that a dataplane is still to be told. A later record takes the place of an earlier one of the same key. It is not safe
// for concurrent use.
type Backlog struct {
	pools     map[model.PoolID]*record
	frontends map[model.FrontendKey]*record
	// on are the tenants for which the dataplane may have a frontend, the last one that it was told of being last: more than one until it has
	// answered. Whose it is that it had before this process began may be unknown: stranger.
	on      map[model.FrontendKey][]string
	tenants map[string]*tenant
	// leaving are records of frontends by the other tenant for which the dataplane may have them.
	leaving map[string]map[*record]bool
	// weighs is what pools cost that the dataplane has.
	weighs map[model.PoolID]int
	// turn is what the tenant had been dealt whose turn it was last: one that comes is neither before nor behind those that are there.
	turn int
	// coming counts by address the frontends that are to come.
	coming map[netip.Addr]int
	// suspects are records that are dealt by themselves, behind all others; passed is how many times others were dealt while some waited.
	suspects map[suspect]bool
	passed   int
	// cost is that of all records, suspected is how many of them are suspects.
	cost, suspected int
	added           uint64
}

// suspect is a record of a tenant, a pool or a frontend: another tenant that has the same address and port later has done nothing.
type suspect struct {
	tenant   string
	pool     model.PoolID
	frontend model.FrontendKey
}

// stranger is the tenant of what the dataplane had before, which the model does not know.
const stranger = ""

// Patience is how many times others are dealt while a suspect waits, whatever they have.
const Patience = 8

// tenant has an account from its first record until it has none.
type tenant struct {
	name string
	// dealt is what it has had since then, by cost.
	dealt int
	// held is up to which version the dataplane holds all that is this tenant's.
	held    uint64
	records int
	// queues are by kind, those of suspects behind the others. In each the records are in the order in which they were added.
	queues [2 * kinds][]*record
}

// record is a pool or a frontend that is to be set or deleted.
type record struct {
	tenant   *tenant
	kind     kind
	suspect  bool
	pool     model.Pool
	frontend model.Frontend
	// added is the change that it came with, the first one if several were for its key.
	added uint64
	// cost is its price.
	cost int
	// void: another one of its key has taken its place.
	void bool
}

// kind orders the records of a tenant: a frontend never names a pool that is not there.
type kind uint8

const (
	setPool kind = iota
	setFrontend
	deleteFrontend
	deletePool
	kinds
)

func (r *record) ofPool() bool { return r.kind == setPool || r.kind == deletePool }

// New returns an empty backlog.
func New() *Backlog {
	b := &Backlog{on: map[model.FrontendKey][]string{}, tenants: map[string]*tenant{}, suspects: map[suspect]bool{}, weighs: map[model.PoolID]int{}}
	b.Clear()
	return b
}

// Clear forgets the records, and not what tenants have had, what they lack and who is suspected.
func (b *Backlog) Clear() {
	b.pools, b.frontends, b.coming, b.leaving = map[model.PoolID]*record{}, map[model.FrontendKey]*record{}, map[netip.Addr]int{}, map[string]map[*record]bool{}
	b.cost, b.suspected = 0, 0
	for _, t := range b.tenants {
		t.records, t.queues = 0, [2 * kinds][]*record{}
	}
}

// Empty tells whether there is nothing to deal.
func (b *Backlog) Empty() bool { return len(b.pools)+len(b.frontends) == 0 }

// Has tells whether the frontend is to be told of.
func (b *Backlog) Has(key model.FrontendKey) bool { return b.frontends[key] != nil }

// Comes tells whether a frontend of the address is to come.
func (b *Backlog) Comes(address netip.Addr) bool { return b.coming[address] > 0 }

// Through tells whether all has been dealt that was added up to then, see Add.
func (b *Backlog) Through(added uint64) bool {
	for _, t := range b.tenants {
		if t.oldest(b.added+1, 0, 2*kinds) <= added {
			return false
		}
	}
	return true
}

// Behind are the tenants that have records here, and up to which version the dataplane holds all that is theirs. It is not known of all tenants
// while the dataplane has to let go of frontends of which nobody knows whose they are.
func (b *Backlog) Behind() (behind map[string]uint64, known bool) {
	behind = map[string]uint64{}
	for name, t := range b.tenants {
		if t.records > 0 {
			behind[name] = t.held
		}
	}
	_, unknown := behind[stranger]
	return behind, !unknown
}

// Holds notes that the dataplane has a frontend for the tenant, unless it is known better.
func (b *Backlog) Holds(key model.FrontendKey, tenant string) {
	if len(b.on[key]) == 0 {
		b.on[key] = []string{tenant}
	}
}

// HoldsUnknown is the same where nobody knows for which tenant.
func (b *Backlog) HoldsUnknown(key model.FrontendKey) { b.Holds(key, stranger) }

// of is the tenant of a frontend that is to be deleted: the one that it was last for.
func (b *Backlog) of(key model.FrontendKey) string {
	if on := b.on[key]; len(on) > 0 {
		return on[len(on)-1]
	}
	if r := b.frontends[key]; r != nil {
		return r.tenant.name
	}
	return stranger
}

// Reached notes that the dataplane holds at least the version, of every tenant.
func (b *Backlog) Reached(version uint64) {
	for _, t := range b.tenants {
		t.held = max(t.held, version)
	}
}

// Add takes a change of what the dataplane was to hold at a version, and returns the change's number.
func (b *Backlog) Add(d model.Delta, version uint64) uint64 {
	b.added++
	for _, p := range d.UpsertPools {
		b.put(p.Tenant, version, &record{kind: setPool, pool: p})
	}
	for _, f := range d.UpsertFrontends {
		b.put(f.Tenant, version, &record{kind: setFrontend, frontend: f})
	}
	for _, key := range d.DeleteFrontends {
		b.put(b.of(key), version, &record{kind: deleteFrontend, frontend: model.Frontend{FrontendKey: key}})
	}
	for _, id := range d.DeletePools {
		b.put(id.Tenant(), version, &record{kind: deletePool, pool: model.Pool{ID: id}})
	}
	for name, t := range b.tenants {
		if t.records == 0 { // since Clear
			delete(b.tenants, name)
		}
	}
	return b.added
}

func (b *Backlog) put(name string, version uint64, r *record) {
	t := b.tenants[name]
	if t == nil {
		t = &tenant{name: name, dealt: b.turn, held: version}
		b.tenants[name] = t
	}
	t.held = min(t.held, version) // a dataplane that began anew holds less than it did
	r.tenant, r.added, r.cost = t, b.added, b.price(r)
	r.suspect = b.suspect(r)
	var before *record
	if r.ofPool() {
		before = b.pools[r.pool.ID]
	} else {
		before = b.frontends[r.frontend.FrontendKey]
	}
	if before != nil {
		if r.kind != deletePool { // which is for others to have left first
			r.added = before.added
		}
		b.take(before)
		if before.waitsLike(r) {
			*before = *r
			b.enlist(before)
			return
		}
		before.void = true
	}
	b.enlist(r)
	r.tenant.enqueue(r)
}

// waitsLike tells whether the other record can have this one's place in its queue.
func (r *record) waitsLike(o *record) bool {
	return r.tenant == o.tenant && r.queue() == o.queue() && r.added == o.added
}

// queue is the number of the record's queue.
func (r *record) queue() kind {
	if r.suspect {
		return r.kind + kinds
	}
	return r.kind
}

// suspect: so is a frontend whose pool is, and has not been dealt.
func (b *Backlog) suspect(r *record) bool {
	pool := b.pools[r.frontend.Pool]
	return b.suspects[suspect{r.tenant.name, r.pool.ID, r.frontend.FrontendKey}] || r.kind == setFrontend && pool != nil && pool.kind == setPool && pool.suspect
}

// enlist takes a record into the backlog, but for its queue.
func (b *Backlog) enlist(r *record) {
	if r.ofPool() {
		b.pools[r.pool.ID] = r
	} else {
		b.frontends[r.frontend.FrontendKey] = r
	}
	if r.kind == setFrontend {
		b.coming[r.frontend.VIP]++
	}
	if r.suspect {
		b.suspected++
	}
	b.cost += r.cost
	r.tenant.records++
	for _, left := range b.left(r) {
		if b.leaving[left] == nil {
			b.leaving[left] = map[*record]bool{}
		}
		b.leaving[left][r] = true
	}
}

// mostVoid bounds a queue: it has at most twice as many records as the tenant, and so many more. The others are void.
const mostVoid = 64

// enqueue puts a record in its queue, in the order of what was added.
func (t *tenant) enqueue(r *record) {
	q := &t.queues[r.queue()]
	if len(*q) > 2*t.records+mostVoid {
		*q = slices.DeleteFunc(*q, func(r *record) bool { return r.void })
	}
	i, _ := slices.BinarySearchFunc(*q, r.added+1, func(r *record, added uint64) int { return cmp.Compare(r.added, added) })
	*q = slices.Insert(*q, i, r)
}

// left are the other tenants that may have the record's frontend on one of their pools.
func (b *Backlog) left(r *record) []string {
	if r.ofPool() {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(b.on[r.frontend.FrontendKey]), func(t string) bool { return t == r.tenant.name })
}

// take takes a record out of the backlog; its queue goes by it.
func (b *Backlog) take(r *record) {
	if r.ofPool() {
		delete(b.pools, r.pool.ID)
	} else {
		delete(b.frontends, r.frontend.FrontendKey)
	}
	if vip := r.frontend.VIP; r.kind == setFrontend {
		if b.coming[vip]--; b.coming[vip] == 0 {
			delete(b.coming, vip)
		}
	}
	if r.suspect {
		b.suspected--
	}
	b.cost -= r.cost
	r.tenant.records--
	for left, records := range b.leaving {
		if delete(records, r); len(records) == 0 {
			delete(b.leaving, left)
		}
	}
}

// head is the first record of a queue, nil for none.
func (t *tenant) head(at kind) *record {
	q := &t.queues[at]
	for len(*q) > 0 && (*q)[0].void {
		*q = (*q)[1:]
	}
	if len(*q) == 0 {
		return nil
	}
	return (*q)[0]
}

// oldest is the number of the change that the record came with that has been in some of the queues for longest.
func (t *tenant) oldest(oldest uint64, from, to kind) uint64 {
	for at := from; at < to; at++ {
		if r := t.head(at); r != nil {
			oldest = min(oldest, r.added)
		}
	}
	return oldest
}

// mayGo tells whether no frontend is on a tenant's pool any more, whose deletion came with that change. What others have to do with other pools
// does not matter to that.
func (b *Backlog) mayGo(t *tenant, added uint64) bool {
	last := b.added + 1
	for _, whose := range []string{t.name, stranger} {
		if u := b.tenants[whose]; u != nil && min(u.oldest(last, setFrontend, deletePool), u.oldest(last, kinds+setFrontend, kinds+deletePool)) <= added {
			return false
		}
		for r := range b.leaving[whose] {
			if r.added <= added {
				return false
			}
		}
	}
	return true
}

// Next deals records up to the cost, and at least one if there is any. One that costs more comes by itself, and so does a suspect.
func (b *Backlog) Next(cost int) (d model.Delta) {
	if b.cost <= cost && b.suspected == 0 {
		return b.all()
	}
	if r := b.waiting(); r != nil && b.passed >= Patience {
		b.passed = 0
		b.deal(r, &d)
		return d
	}
	if b.passed++; b.suspected == 0 {
		b.passed = 0
	}
	spent := 0
	for turns := b.turns(); len(turns.heads) > 0; {
		r := turns.heads[0]
		if spent > 0 && (r.suspect || spent+r.cost > cost) {
			break
		}
		spent += r.cost
		b.deal(r, &d)
		if r.suspect {
			b.passed = 0
			break
		}
		turns.next()
	}
	return d
}

// waiting is the next suspect of the tenants that have nothing else to be told of: the one of the tenant that has had least.
func (b *Backlog) waiting() (next *record) {
	for _, t := range b.tenants {
		if b.suspected == 0 || t.oldest(b.added+1, setPool, deletePool) <= b.added {
			continue
		}
		if r := b.next(t); r != nil && r.suspect && (next == nil || less(r, next)) {
			next = r
		}
	}
	return next
}

// all deals everything.
func (b *Backlog) all() (d model.Delta) {
	var all []*record
	for _, t := range b.tenants {
		for at := range 2 * kinds {
			for _, r := range t.queues[at] {
				if !r.void {
					all = append(all, r)
				}
			}
		}
	}
	slices.SortFunc(all, func(x, y *record) int {
		return cmp.Or(cmp.Compare(x.kind, y.kind), cmp.Compare(x.added, y.added), cmp.Compare(x.pool.ID, y.pool.ID), x.frontend.FrontendKey.Compare(y.frontend.FrontendKey))
	})
	for _, r := range all {
		b.deal(r, &d)
	}
	return d
}

// deal takes a record out of the backlog and into the change.
func (b *Backlog) deal(r *record, d *model.Delta) {
	t := r.tenant
	b.take(r)
	r.void = true
	b.turn = t.dealt
	t.dealt += r.cost
	if t.records == 0 {
		delete(b.tenants, t.name)
	}
	switch r.kind {
	case setPool:
		d.UpsertPools = append(d.UpsertPools, r.pool)
		b.HoldsPool(r.pool)
	case setFrontend:
		d.UpsertFrontends = append(d.UpsertFrontends, r.frontend)
		b.on[r.frontend.FrontendKey] = append(b.left(r), t.name)
	case deleteFrontend:
		d.DeleteFrontends = append(d.DeleteFrontends, r.frontend.FrontendKey)
	case deletePool:
		d.DeletePools = append(d.DeletePools, r.pool.ID)
		delete(b.weighs, r.pool.ID)
	}
}

// turns is a heap of each tenant's next record. The first is that of the tenant that has had least, and a suspect only if nobody has another.
type turns struct {
	backlog *Backlog
	heads   []*record
}

func (b *Backlog) turns() *turns {
	out := &turns{backlog: b}
	for _, t := range b.tenants {
		if r := b.next(t); r != nil {
			out.heads = append(out.heads, r)
		}
	}
	heap.Init(out)
	return out
}

// next is the tenant's next record that can be dealt now.
func (b *Backlog) next(t *tenant) *record {
	for at := range 2 * kinds {
		if r := t.head(at); r != nil && (r.kind != deletePool || b.mayGo(t, r.added)) {
			return r
		}
	}
	return nil
}

// next goes on when the first has been dealt.
func (t *turns) next() {
	r := t.backlog.next(t.heads[0].tenant)
	if r == nil {
		heap.Pop(t)
		return
	}
	t.heads[0] = r
	heap.Fix(t, 0)
}

func (t *turns) Len() int { return len(t.heads) }
func (t *turns) Less(i, j int) bool {
	x, y := t.heads[i], t.heads[j]
	if x.suspect != y.suspect {
		return y.suspect
	}
	return less(x, y)
}
func (t *turns) Swap(i, j int) { t.heads[i], t.heads[j] = t.heads[j], t.heads[i] }
func (t *turns) Push(x any)    { t.heads = append(t.heads, x.(*record)) }
func (t *turns) Pop() any {
	last := t.heads[len(t.heads)-1]
	t.heads = t.heads[:len(t.heads)-1]
	return last
}

// less: the tenant is before the other one's that has had less.
func less(x, y *record) bool {
	return cmp.Or(cmp.Compare(x.tenant.dealt, y.tenant.dealt), cmp.Compare(x.tenant.name, y.tenant.name)) < 0
}

// Failed notes that what was dealt has brought the dataplane to its end, or to take longer than it may. Which of the records has is not
// known: once they are added anew, each comes by itself, when nobody else waits, until it is to be trusted, see Trust.
func (b *Backlog) Failed(d model.Delta) {
	for r := range b.recordsOf(d) {
		b.suspects[r] = true
	}
}

// Suspected tells whether all of what was dealt had failed before.
func (b *Backlog) Suspected(d model.Delta) bool {
	for r := range b.recordsOf(d) {
		if !b.suspects[r] {
			return false
		}
	}
	return true
}

// Trust notes that the dataplane has answered to what was dealt, which is none of what Failed. Frontends that it refused are as they were: those of
// them are returned that it may have for another tenant than is served there now. They are to be deleted.
func (b *Backlog) Trust(d model.Delta, refused func(model.FrontendKey) bool) (others []model.FrontendKey) {
	if len(b.suspects) > 0 {
		for r := range b.recordsOf(d) {
			delete(b.suspects, r)
		}
	}
	for _, f := range d.UpsertFrontends {
		switch key := f.FrontendKey; {
		case !refused(key):
			b.on[key] = []string{f.Tenant}
		case len(b.on[key]) > 1:
			others = append(others, key)
		}
	}
	for _, key := range d.DeleteFrontends {
		if !refused(key) {
			delete(b.on, key)
		}
	}
	return others
}

// recordsOf are the records of a change, with their tenants.
func (b *Backlog) recordsOf(d model.Delta) iter.Seq[suspect] {
	return func(yield func(suspect) bool) {
		for _, p := range d.UpsertPools {
			if !yield(suspect{tenant: p.Tenant, pool: p.ID}) {
				return
			}
		}
		for _, f := range d.UpsertFrontends {
			if !yield(suspect{tenant: f.Tenant, frontend: f.FrontendKey}) {
				return
			}
		}
		for _, key := range d.DeleteFrontends {
			if !yield(suspect{tenant: b.of(key), frontend: key}) {
				return
			}
		}
		for _, id := range d.DeletePools {
			if !yield(suspect{tenant: id.Tenant(), pool: id}) {
				return
			}
		}
	}
}
