package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	"github.com/cilium/ebpf"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/backends/dataplane/shares"
	"kubelb.k8c.io/core/model"
)

// apply is the run of one Apply.
type apply struct {
	backend    *Backend
	forwarding forwarding
	shares     *shares.Shares
	operations uint64
	failed     []dataplane.RecordError
	// cut are frontends that are gone, or another tenant's now.
	cut map[model.FrontendKey]bool
}

// endFormer ends what nftables began of frontends that are gone, or another tenant's, and has connection tracking rewrite since: the programs leave
// such flows to it. Their own they know no more.
func (a *apply) endFormer() error {
	if !a.backend.kernel.tracking.asked() {
		return nil
	}
	if err := hostflows.End(a.cut); !errors.Is(err, hostflows.ErrCannotEndSockets) { // a proxy that has been replaced ends them soon
		return err
	}
	return nil
}

// carryOut does what a record's plan says.
func (a *apply) carryOut(p *plan, err error, record dataplane.RecordError) bool {
	if err == nil && p != nil {
		if err = a.backend.kernel.apply(p.writes); err == nil {
			a.done(p)
		}
	}
	a.fail(err, record)
	return err == nil
}

func (a *apply) done(p *plan) {
	p.commit()
	a.operations += uint64(len(p.writes))
}

func (a *apply) fail(err error, record dataplane.RecordError) {
	if err != nil {
		record.Message = err.Error()
		a.failed = append(a.failed, record)
	}
}

// pools brings in pools.
func (a *apply) pools(pools []model.Pool) {
	b := a.backend
	var written []model.PoolID
	for _, p := range pools {
		if err := takePool(a.shares, p, b.state.pools[p.ID]); err != nil {
			a.fail(err, dataplane.RecordError{Pool: p.ID})
			continue
		}
		plan, err := b.planPool(p)
		if a.carryOut(plan, err, dataplane.RecordError{Pool: p.ID}) {
			written = append(written, p.ID)
		}
	}
	if err := b.kernel.placeTables(); err != nil {
		for _, id := range written {
			b.state.pools[id].digest = "" // so that it is asked for again
			a.fail(err, dataplane.RecordError{Pool: id})
		}
	}
}

// planPool plans the pool if this gateway can reach it.
func (b *Backend) planPool(p model.Pool) (*plan, error) {
	if err := b.state.requireNeighbours(p); err != nil {
		return nil, err
	}
	return b.state.planPool(p, b.sources.towards)
}

// frontends brings in frontends, all at once where that goes well.
func (a *apply) frontends(frontends []model.Frontend) {
	var plans []*plan
	var records []dataplane.RecordError
	for _, f := range frontends {
		if old := a.backend.state.frontends[f.FrontendKey]; old != nil && old.tenant != f.Tenant {
			a.cut[f.FrontendKey] = true
		}
		record := dataplane.RecordError{Frontend: f.FrontendKey}
		if err := takeFrontend(a.shares, f, a.backend.state.frontends[f.FrontendKey]); err != nil {
			a.fail(err, record)
			continue
		}
		p, err := a.planFrontend(f)
		if err != nil {
			a.fail(err, record)
			continue
		}
		plans, records = append(plans, p), append(records, record)
	}
	all := a.backend.kernel.applyAll(plans)
	roles := map[netip.Addr]map[uint32]int{}
	for i, p := range plans {
		if all != nil && !a.carryOut(p, nil, records[i]) {
			continue
		}
		if all == nil {
			a.done(p)
		}
		add(roles, p.roles)
	}
	lures := &plan{commit: func() { a.backend.state.commitRoles(roles) }}
	a.backend.state.planRoles(lures, roles)
	if err := a.backend.kernel.apply(lures.writes); err != nil {
		for _, record := range records {
			a.fail(err, record)
		}
		return
	}
	a.done(lures)
}

// planFrontend plans the frontend if this host can serve it.
func (a *apply) planFrontend(f model.Frontend) (*plan, error) {
	if err := a.forwarding.require(f.VIP.Is4()); err != nil {
		return nil, err
	}
	switch f.Forwarding {
	case model.Transparent:
		if err := a.backend.kernel.takeAnswers(); err != nil {
			return nil, err
		}
	case model.Direct:
		if err := a.backend.state.requireDirect(f); err != nil {
			return nil, err
		}
	}
	return a.backend.state.planFrontend(f)
}

// add adds up who needs an address in each of its roles.
func add(roles, more map[netip.Addr]map[uint32]int) {
	for a, change := range more {
		for role, n := range change {
			count(roles, a, role, n)
		}
	}
}

// stage is a step of all plans together, in which one map is written.
type stage struct {
	table  string
	remove bool
}

// stagesOfFrontends are those of frontends in their order: what a packet is led to is there before the packet is.
var stagesOfFrontends = []stage{{mapNumbers, false}, {mapServiceCounters, false}, {mapSourceRanges, false}, {mapHandovers, false}, {mapLimits, false}, {mapServices, false}, {mapSourceRanges, true}, {mapHandovers, true}, {mapLimits, true}, {mapFrontends, false}, {mapServiceRecords, false}}

// applyAll does what many frontends' plans say, map by map.
func (k *kernel) applyAll(plans []*plan) error {
	byStage := map[stage][]write{}
	for _, p := range plans {
		for _, w := range p.writes {
			s := stage{w.table, w.value == nil}
			byStage[s] = append(byStage[s], w)
		}
	}
	for _, s := range stagesOfFrontends {
		writes := byStage[s]
		if s.table == mapNumbers && len(writes) > 0 {
			writes = writes[len(writes)-1:] // the last numbers given are the highest
		}
		if err := k.applyStage(s, writes); err != nil {
			return err
		}
	}
	return nil
}

// fewWrites are written one by one.
const fewWrites = 8

func (k *kernel) applyStage(s stage, writes []write) error {
	if len(writes) < fewWrites || s.remove || s.table == mapServiceCounters || s.table == mapSourceRanges {
		return k.apply(writes)
	}
	keys, values := reflect.MakeSlice(reflect.SliceOf(reflect.TypeOf(writes[0].key)), 0, len(writes)), reflect.MakeSlice(reflect.SliceOf(reflect.TypeOf(writes[0].value)), 0, len(writes))
	for _, w := range writes {
		keys, values = reflect.Append(keys, reflect.ValueOf(w.key)), reflect.Append(values, reflect.ValueOf(w.value))
	}
	if _, err := k.maps[s.table].BatchUpdate(keys.Interface(), values.Interface(), nil); err != nil {
		return fmt.Errorf("map %s: %w", s.table, err)
	}
	return nil
}

// placeTables puts the tables of rows that wait into their places, all at once: the kernel takes 10 ms, for one as for a thousand.
func (k *kernel) placeTables() error {
	if len(k.tables) == 0 {
		return nil
	}
	var pools, files []uint32
	for pool, table := range k.tables {
		pools, files = append(pools, pool), append(files, uint32(table.FD()))
	}
	_, err := k.objects.Pools.BatchUpdate(pools, files, nil)
	for _, table := range k.tables {
		err = errors.Join(err, table.Close())
	}
	clear(k.tables)
	if err != nil {
		return fmt.Errorf("map %s: %w", mapPools, err)
	}
	return nil
}

// keepForPlace has a table wait for placeTables.
func (k *kernel) keepForPlace(pool uint32, table *ebpf.Map) {
	if former := k.tables[pool]; former != nil {
		_ = former.Close()
	}
	k.tables[pool] = table
}

// Apply writes what differs.
func (b *Backend) Apply(_ context.Context, c dataplane.Change) (dataplane.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := &apply{backend: b, forwarding: forwarding{}, shares: b.state.shares(), cut: map[model.FrontendKey]bool{}}
	a.pools(c.UpsertPools)
	a.frontends(c.UpsertFrontends)
	for _, key := range c.DeleteFrontends {
		a.cut[key] = true
		a.carryOut(b.state.planFrontendGone(key), nil, dataplane.RecordError{Frontend: key})
	}
	for _, id := range c.DeletePools {
		a.carryOut(b.state.planPoolGone(id), nil, dataplane.RecordError{Pool: id})
	}
	return dataplane.Result{Operations: a.operations, Failed: a.failed}, a.endFormer()
}
