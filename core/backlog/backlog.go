// Package backlog queues changes for a dataplane and hands them out in batches of bounded size. Tenants take turns, so that a tenant with a few
// changes does not wait for a tenant with many.
package backlog

import (
	"cmp"
	"container/heap"
	"iter"
	"net/netip"
	"slices"

	"kubelb.k8c.io/core/model"
)

// Backlog holds the records that a dataplane is still to be told. A later record replaces an earlier one of the same key. It is not safe for
// concurrent use.
type Backlog struct {
	pools     map[model.PoolID]*record
	frontends map[model.FrontendKey]*record
	// frontendTenants lists for each frontend the tenants for which the dataplane may hold it, the latest last. There are several until the dataplane has
	// answered. A frontend that the dataplane held before this process may be of unknownTenant.
	frontendTenants map[model.FrontendKey][]string
	tenants         map[string]*tenant
	// moving has the records of frontends that the dataplane may still hold for another tenant, by that tenant.
	moving map[string]map[*record]bool
	// poolCosts is the cost of each pool that the dataplane holds.
	poolCosts map[model.PoolID]int
	// virtualTime is what the tenant that was served last had consumed before. A new tenant starts with it, so that it is neither ahead of the
	// others nor behind them.
	virtualTime int
	// pending counts for each address the frontends that wait to be set.
	pending map[netip.Addr]int
	// suspects may have made the dataplane fail. Each is in a batch of its own, behind all other records. sinceSuspect counts the batches of other
	// records while a suspect waits.
	suspects     map[recordKey]bool
	sinceSuspect int
	// cost is the cost of all records, suspectCount the number of suspects among them.
	cost, suspectCount int
	// lastChange is the number of the last change.
	lastChange uint64
}

// recordKey names a pool or a frontend. It has the tenant, so that a tenant that gets an address and port of another tenant is no suspect.
type recordKey struct {
	tenant   string
	pool     model.PoolID
	frontend model.FrontendKey
}

// unknownTenant is the tenant of frontends that the dataplane held before and that are not in the model.
const unknownTenant = ""

// SuspectDelay is the number of batches after which a suspect is sent although other records wait.
const SuspectDelay = 8

// tenant is there while the tenant has records.
type tenant struct {
	name string
	// consumed is the cost of its records that Next has returned.
	consumed int
	// heldVersion is the version up to which the dataplane holds all of the tenant's records.
	heldVersion uint64
	records     int
	// queues has one queue for each kind, then one for the suspects of each kind. A queue is in the order in which records were added.
	queues [2 * kinds][]*record
}

// record is a pool or a frontend that is to be set or deleted.
type record struct {
	tenant   *tenant
	kind     kind
	suspect  bool
	pool     model.Pool
	frontend model.Frontend
	// change is the number of the change that it came with: the first, if several changes were for its key.
	change uint64
	cost   int
	// removed is set on a record that is still in its queue, but is replaced or has been returned.
	removed bool
}

// kind orders the records of a tenant, so that a frontend never names a pool that does not exist.
type kind uint8

const (
	setPool kind = iota
	setFrontend
	deleteFrontend
	deletePool
	kinds
)

func (r *record) isPool() bool { return r.kind == setPool || r.kind == deletePool }

// New returns an empty backlog.
func New() *Backlog {
	b := &Backlog{frontendTenants: map[model.FrontendKey][]string{}, tenants: map[string]*tenant{}, suspects: map[recordKey]bool{}, poolCosts: map[model.PoolID]int{}}
	b.Clear()
	return b
}

// Clear removes all records. It keeps what tenants have consumed, their versions, and the suspects.
func (b *Backlog) Clear() {
	b.pools, b.frontends, b.pending, b.moving = map[model.PoolID]*record{}, map[model.FrontendKey]*record{}, map[netip.Addr]int{}, map[string]map[*record]bool{}
	b.cost, b.suspectCount = 0, 0
	for _, t := range b.tenants {
		t.records, t.queues = 0, [2 * kinds][]*record{}
	}
}

// Empty reports whether there are no records.
func (b *Backlog) Empty() bool { return len(b.pools)+len(b.frontends) == 0 }

// Has reports whether the frontend has a record here.
func (b *Backlog) Has(key model.FrontendKey) bool { return b.frontends[key] != nil }

// HasUpsertFor reports whether a frontend of the address waits to be set.
func (b *Backlog) HasUpsertFor(address netip.Addr) bool { return b.pending[address] > 0 }

// HasReturned reports whether Next has returned all records up to the change with that number, see Add.
func (b *Backlog) HasReturned(added uint64) bool {
	for _, t := range b.tenants {
		if t.oldestChange(b.lastChange+1, 0, 2*kinds) <= added {
			return false
		}
	}
	return true
}

// Behind returns the tenants that have records here, each with the version up to which the dataplane holds all its records. known is false
// while the dataplane is to delete frontends of an unknown tenant.
func (b *Backlog) Behind() (behind map[string]uint64, known bool) {
	behind = map[string]uint64{}
	for name, t := range b.tenants {
		if t.records > 0 {
			behind[name] = t.heldVersion
		}
	}
	_, unknown := behind[unknownTenant]
	return behind, !unknown
}

// AddHeld notes that the dataplane holds a frontend for the tenant, unless its tenant is already known.
func (b *Backlog) AddHeld(key model.FrontendKey, tenant string) {
	if len(b.frontendTenants[key]) == 0 {
		b.frontendTenants[key] = []string{tenant}
	}
}

// AddHeldOfUnknownTenant is AddHeld for a frontend of an unknown tenant.
func (b *Backlog) AddHeldOfUnknownTenant(key model.FrontendKey) { b.AddHeld(key, unknownTenant) }

// tenantOf returns the tenant of a frontend that is to be deleted: the last tenant that had it.
func (b *Backlog) tenantOf(key model.FrontendKey) string {
	if on := b.frontendTenants[key]; len(on) > 0 {
		return on[len(on)-1]
	}
	if r := b.frontends[key]; r != nil {
		return r.tenant.name
	}
	return unknownTenant
}

// SetVersion notes that the dataplane holds at least this version for all tenants.
func (b *Backlog) SetVersion(version uint64) {
	for _, t := range b.tenants {
		t.heldVersion = max(t.heldVersion, version)
	}
}

// Add adds what changed since a version of the model, and returns the number of the change.
func (b *Backlog) Add(d model.Delta, version uint64) uint64 {
	b.lastChange++
	for _, p := range d.UpsertPools {
		b.put(p.Tenant, version, &record{kind: setPool, pool: p})
	}
	for _, f := range d.UpsertFrontends {
		b.put(f.Tenant, version, &record{kind: setFrontend, frontend: f})
	}
	for _, key := range d.DeleteFrontends {
		b.put(b.tenantOf(key), version, &record{kind: deleteFrontend, frontend: model.Frontend{FrontendKey: key}})
	}
	for _, id := range d.DeletePools {
		b.put(id.Tenant(), version, &record{kind: deletePool, pool: model.Pool{ID: id}})
	}
	for name, t := range b.tenants {
		if t.records == 0 { // since Clear
			delete(b.tenants, name)
		}
	}
	return b.lastChange
}

func (b *Backlog) put(name string, version uint64, r *record) {
	t := b.tenants[name]
	if t == nil {
		t = &tenant{name: name, consumed: b.virtualTime, heldVersion: version}
		b.tenants[name] = t
	}
	t.heldVersion = min(t.heldVersion, version) // a dataplane that was restarted may hold less than before
	r.tenant, r.change, r.cost = t, b.lastChange, b.recordCost(r)
	r.suspect = b.isSuspect(r)
	var before *record
	if r.isPool() {
		before = b.pools[r.pool.ID]
	} else {
		before = b.frontends[r.frontend.FrontendKey]
	}
	if before != nil {
		if r.kind != deletePool { // a pool is deleted after all records that were added before
			r.change = before.change
		}
		b.remove(before)
		if before.canReplace(r) {
			*before = *r
			b.insert(before)
			return
		}
		before.removed = true
	}
	b.insert(r)
	r.tenant.enqueue(r)
}

// canReplace reports whether the other record can have the place of this one in its queue.
func (r *record) canReplace(o *record) bool {
	return r.tenant == o.tenant && r.queue() == o.queue() && r.change == o.change
}

// queue is the index of the record's queue.
func (r *record) queue() kind {
	if r.suspect {
		return r.kind + kinds
	}
	return r.kind
}

// isSuspect reports whether the record, or the pool of a frontend that is set in the same batch, may have made the dataplane fail.
func (b *Backlog) isSuspect(r *record) bool {
	pool := b.pools[r.frontend.Pool]
	return b.suspects[recordKey{r.tenant.name, r.pool.ID, r.frontend.FrontendKey}] || r.kind == setFrontend && pool != nil && pool.kind == setPool && pool.suspect
}

// insert adds a record to all but its queue.
func (b *Backlog) insert(r *record) {
	if r.isPool() {
		b.pools[r.pool.ID] = r
	} else {
		b.frontends[r.frontend.FrontendKey] = r
	}
	if r.kind == setFrontend {
		b.pending[r.frontend.VIP]++
	}
	if r.suspect {
		b.suspectCount++
	}
	b.cost += r.cost
	r.tenant.records++
	for _, left := range b.formerTenants(r) {
		if b.moving[left] == nil {
			b.moving[left] = map[*record]bool{}
		}
		b.moving[left][r] = true
	}
}

// maxRemoved bounds a queue, which still has removed records: its length is at most twice the tenant's records, plus maxRemoved.
const maxRemoved = 64

// enqueue puts a record in its queue, ordered by the number of its change.
func (t *tenant) enqueue(r *record) {
	q := &t.queues[r.queue()]
	if len(*q) > 2*t.records+maxRemoved {
		*q = slices.DeleteFunc(*q, func(r *record) bool { return r.removed })
	}
	i, _ := slices.BinarySearchFunc(*q, r.change+1, func(r *record, added uint64) int { return cmp.Compare(r.change, added) })
	*q = slices.Insert(*q, i, r)
}

// formerTenants returns the other tenants for which the dataplane may hold the record's frontend.
func (b *Backlog) formerTenants(r *record) []string {
	if r.isPool() {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(b.frontendTenants[r.frontend.FrontendKey]), func(t string) bool { return t == r.tenant.name })
}

// remove removes a record from all but its queue.
func (b *Backlog) remove(r *record) {
	if r.isPool() {
		delete(b.pools, r.pool.ID)
	} else {
		delete(b.frontends, r.frontend.FrontendKey)
	}
	if vip := r.frontend.VIP; r.kind == setFrontend {
		if b.pending[vip]--; b.pending[vip] == 0 {
			delete(b.pending, vip)
		}
	}
	if r.suspect {
		b.suspectCount--
	}
	b.cost -= r.cost
	r.tenant.records--
	for left, records := range b.moving {
		if delete(records, r); len(records) == 0 {
			delete(b.moving, left)
		}
	}
}

// head returns the first record of a queue, nil for none.
func (t *tenant) head(at kind) *record {
	q := &t.queues[at]
	for len(*q) > 0 && (*q)[0].removed {
		*q = (*q)[1:]
	}
	if len(*q) == 0 {
		return nil
	}
	return (*q)[0]
}

// oldestChange returns the lowest number of a change in the queues, or the given one if that is lower.
func (t *tenant) oldestChange(oldest uint64, from, to kind) uint64 {
	for at := from; at < to; at++ {
		if r := t.head(at); r != nil {
			oldest = min(oldest, r.change)
		}
	}
	return oldest
}

// canDeletePool reports whether no frontend uses a pool of the tenant any more that was deleted by that change: whether all earlier records
// of frontends that may use it have been returned. Other tenants' pools do not delay it.
func (b *Backlog) canDeletePool(t *tenant, added uint64) bool {
	last := b.lastChange + 1
	for _, whose := range []string{t.name, unknownTenant} {
		if u := b.tenants[whose]; u != nil && min(u.oldestChange(last, setFrontend, deletePool), u.oldestChange(last, kinds+setFrontend, kinds+deletePool)) <= added {
			return false
		}
		for r := range b.moving[whose] {
			if r.change <= added {
				return false
			}
		}
	}
	return true
}

// Next returns records up to the cost, and at least one if there is any. A record that costs more is alone, and so is a suspect.
func (b *Backlog) Next(cost int) (d model.Delta) {
	if b.cost <= cost && b.suspectCount == 0 {
		return b.all()
	}
	if r := b.waitingSuspect(); r != nil && b.sinceSuspect >= SuspectDelay {
		b.sinceSuspect = 0
		b.dequeue(r, &d)
		return d
	}
	if b.sinceSuspect++; b.suspectCount == 0 {
		b.sinceSuspect = 0
	}
	spent := 0
	for turns := b.newTenantHeap(); len(turns.heads) > 0; {
		r := turns.heads[0]
		if spent > 0 && (r.suspect || spent+r.cost > cost) {
			break
		}
		spent += r.cost
		b.dequeue(r, &d)
		if r.suspect {
			b.sinceSuspect = 0
			break
		}
		turns.advance()
	}
	return d
}

// waitingSuspect returns the next suspect among tenants that have no other records: of the tenant that has consumed least.
func (b *Backlog) waitingSuspect() (next *record) {
	for _, t := range b.tenants {
		if b.suspectCount == 0 || t.oldestChange(b.lastChange+1, setPool, deletePool) <= b.lastChange {
			continue
		}
		if r := b.nextOf(t); r != nil && r.suspect && (next == nil || lessConsumed(r, next)) {
			next = r
		}
	}
	return next
}

// all returns all records.
func (b *Backlog) all() (d model.Delta) {
	var all []*record
	for _, t := range b.tenants {
		for at := range 2 * kinds {
			for _, r := range t.queues[at] {
				if !r.removed {
					all = append(all, r)
				}
			}
		}
	}
	slices.SortFunc(all, func(x, y *record) int {
		return cmp.Or(cmp.Compare(x.kind, y.kind), cmp.Compare(x.change, y.change), cmp.Compare(x.pool.ID, y.pool.ID), x.frontend.FrontendKey.Compare(y.frontend.FrontendKey))
	})
	for _, r := range all {
		b.dequeue(r, &d)
	}
	return d
}

// dequeue moves a record from the backlog to the batch.
func (b *Backlog) dequeue(r *record, d *model.Delta) {
	t := r.tenant
	b.remove(r)
	r.removed = true
	b.virtualTime = t.consumed
	t.consumed += r.cost
	if t.records == 0 {
		delete(b.tenants, t.name)
	}
	switch r.kind {
	case setPool:
		d.UpsertPools = append(d.UpsertPools, r.pool)
		b.AddHeldPool(r.pool)
	case setFrontend:
		d.UpsertFrontends = append(d.UpsertFrontends, r.frontend)
		b.frontendTenants[r.frontend.FrontendKey] = append(b.formerTenants(r), t.name)
	case deleteFrontend:
		d.DeleteFrontends = append(d.DeleteFrontends, r.frontend.FrontendKey)
	case deletePool:
		d.DeletePools = append(d.DeletePools, r.pool.ID)
		delete(b.poolCosts, r.pool.ID)
	}
}

// tenantHeap has the next record of each tenant. The first is that of the tenant that has consumed least. Suspects are behind all others.
type tenantHeap struct {
	backlog *Backlog
	heads   []*record
}

func (b *Backlog) newTenantHeap() *tenantHeap {
	out := &tenantHeap{backlog: b}
	for _, t := range b.tenants {
		if r := b.nextOf(t); r != nil {
			out.heads = append(out.heads, r)
		}
	}
	heap.Init(out)
	return out
}

// nextOf returns the tenant's next record that can be sent now.
func (b *Backlog) nextOf(t *tenant) *record {
	for at := range 2 * kinds {
		if r := t.head(at); r != nil && (r.kind != deletePool || b.canDeletePool(t, r.change)) {
			return r
		}
	}
	return nil
}

// advance replaces the first record by the next one of its tenant.
func (t *tenantHeap) advance() {
	r := t.backlog.nextOf(t.heads[0].tenant)
	if r == nil {
		heap.Pop(t)
		return
	}
	t.heads[0] = r
	heap.Fix(t, 0)
}

func (t *tenantHeap) Len() int { return len(t.heads) }
func (t *tenantHeap) Less(i, j int) bool {
	x, y := t.heads[i], t.heads[j]
	if x.suspect != y.suspect {
		return y.suspect
	}
	return lessConsumed(x, y)
}
func (t *tenantHeap) Swap(i, j int) { t.heads[i], t.heads[j] = t.heads[j], t.heads[i] }
func (t *tenantHeap) Push(x any)    { t.heads = append(t.heads, x.(*record)) }
func (t *tenantHeap) Pop() any {
	last := t.heads[len(t.heads)-1]
	t.heads = t.heads[:len(t.heads)-1]
	return last
}

// lessConsumed orders records by their tenants: the tenant that has consumed less is first.
func lessConsumed(x, y *record) bool {
	return cmp.Or(cmp.Compare(x.tenant.consumed, y.tenant.consumed), cmp.Compare(x.tenant.name, y.tenant.name)) < 0
}

// MarkFailed notes that the plugin ended with this batch, or missed its deadline. The record that caused it is unknown. Once the records are added
// again each is in a batch of its own, behind those of other tenants, until MarkAnswered is called for it.
func (b *Backlog) MarkFailed(d model.Delta) {
	for r := range b.recordsOf(d) {
		b.suspects[r] = true
	}
}

// AreSuspects reports whether all records of the batch had failed before.
func (b *Backlog) AreSuspects(d model.Delta) bool {
	for r := range b.recordsOf(d) {
		if !b.suspects[r] {
			return false
		}
	}
	return true
}

// MarkAnswered notes that the dataplane has answered to the batch, so that its records are no suspects. A refused frontend stays as it was. MarkAnswered
// returns the refused frontends that the dataplane may still hold for a former tenant: the caller has to delete them.
func (b *Backlog) MarkAnswered(d model.Delta, refused func(model.FrontendKey) bool) (others []model.FrontendKey) {
	if len(b.suspects) > 0 {
		for r := range b.recordsOf(d) {
			delete(b.suspects, r)
		}
	}
	for _, f := range d.UpsertFrontends {
		switch key := f.FrontendKey; {
		case !refused(key):
			b.frontendTenants[key] = []string{f.Tenant}
		case len(b.frontendTenants[key]) > 1:
			others = append(others, key)
		}
	}
	for _, key := range d.DeleteFrontends {
		if !refused(key) {
			delete(b.frontendTenants, key)
		}
	}
	return others
}

// recordsOf returns the keys of the records of a batch.
func (b *Backlog) recordsOf(d model.Delta) iter.Seq[recordKey] {
	return func(yield func(recordKey) bool) {
		for _, p := range d.UpsertPools {
			if !yield(recordKey{tenant: p.Tenant, pool: p.ID}) {
				return
			}
		}
		for _, f := range d.UpsertFrontends {
			if !yield(recordKey{tenant: f.Tenant, frontend: f.FrontendKey}) {
				return
			}
		}
		for _, key := range d.DeleteFrontends {
			if !yield(recordKey{tenant: b.tenantOf(key), frontend: key}) {
				return
			}
		}
		for _, id := range d.DeletePools {
			if !yield(recordKey{tenant: id.Tenant(), pool: id}) {
				return
			}
		}
	}
}
