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

// apply is one call of Apply.
type apply struct {
	backend    *Backend
	forwarding forwardingResults
	shares     *shares.Shares
	operations uint64
	failed     []dataplane.RecordError
	// reassigned are frontends that are deleted, or have another tenant now.
	reassigned map[model.FrontendKey]bool
}

// endReassigned ends flows to reassigned frontends that the nftables dataplane began. Connection tracking still rewrites them, and the programs leave them to it.
// Flows that the programs began end by the generation of the frontend.
func (a *apply) endReassigned() error {
	if !a.backend.kernel.tracking.usable() {
		return nil
	}
	if err := hostflows.End(a.reassigned); !errors.Is(err, hostflows.ErrCannotEndSockets) { // a replaced proxy ends its sockets soon
		return err
	}
	return nil
}

// execute executes the plan of a record, and records the error. It returns whether that went well.
func (a *apply) execute(p *plan, err error, record dataplane.RecordError) bool {
	if err == nil && p != nil {
		if err = a.backend.kernel.apply(p.writes); err == nil {
			a.commit(p)
		}
	}
	a.fail(err, record)
	return err == nil
}

func (a *apply) commit(p *plan) {
	p.commit()
	a.operations += uint64(len(p.writes))
}

func (a *apply) fail(err error, record dataplane.RecordError) {
	if err != nil {
		record.Message = err.Error()
		a.failed = append(a.failed, record)
	}
}

// applyPools creates and updates pools.
func (a *apply) applyPools(pools []model.Pool) {
	b := a.backend
	var written []model.PoolID
	for _, p := range pools {
		if err := replacePool(a.shares, p, b.state.pools[p.ID]); err != nil {
			a.fail(err, dataplane.RecordError{Pool: p.ID})
			continue
		}
		plan, err := b.checkAndPlanPool(p)
		if a.execute(plan, err, dataplane.RecordError{Pool: p.ID}) {
			written = append(written, p.ID)
		}
	}
	if err := b.kernel.installTables(); err != nil {
		for _, id := range written {
			b.state.pools[id].digest = "" // so that the manager sends it again
			a.fail(err, dataplane.RecordError{Pool: id})
		}
	}
}

// checkAndPlanPool plans the pool, if this gateway can reach its endpoints.
func (b *Backend) checkAndPlanPool(p model.Pool) (*plan, error) {
	if err := b.state.checkPoolOnLink(p); err != nil {
		return nil, err
	}
	return b.state.planPool(p, b.sources.sourceFor)
}

// applyFrontends creates and updates frontends, all together if that goes well, and one by one otherwise.
func (a *apply) applyFrontends(frontends []model.Frontend) {
	var plans []*plan
	var records []dataplane.RecordError
	for _, f := range frontends {
		if old := a.backend.state.frontends[f.FrontendKey]; old != nil && old.tenant != f.Tenant {
			a.reassigned[f.FrontendKey] = true
		}
		record := dataplane.RecordError{Frontend: f.FrontendKey}
		if err := replaceFrontend(a.shares, f, a.backend.state.frontends[f.FrontendKey]); err != nil {
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
		if all != nil && !a.execute(p, nil, records[i]) {
			continue
		}
		if all == nil {
			a.commit(p)
		}
		mergeRoles(roles, p.roles)
	}
	vips := &plan{commit: func() { a.backend.state.commitRoles(roles) }}
	a.backend.state.planRoles(vips, roles)
	if err := a.backend.kernel.apply(vips.writes); err != nil {
		for _, record := range records {
			a.fail(err, record)
		}
		return
	}
	a.commit(vips)
}

// planFrontend plans the frontend, if this host can serve it.
func (a *apply) planFrontend(f model.Frontend) (*plan, error) {
	if err := a.forwarding.check(f.VIP.Is4()); err != nil {
		return nil, err
	}
	switch f.Forwarding {
	case model.Transparent:
		if err := a.backend.kernel.enableTransparent(); err != nil {
			return nil, err
		}
	case model.Direct:
		if err := a.backend.state.checkDirect(f); err != nil {
			return nil, err
		}
	}
	return a.backend.state.planFrontend(f)
}

// mergeRoles adds the counts of more to roles.
func mergeRoles(roles, more map[netip.Addr]map[uint32]int) {
	for a, change := range more {
		for role, n := range change {
			countRole(roles, a, role, n)
		}
	}
}

// stage is a step of all plans together: the writes to one map, or the deletes from it.
type stage struct {
	mapName string
	remove  bool
}

// frontendStages are the stages of frontends in their order. An element is written before any other element that refers to it.
var frontendStages = []stage{{mapNumbers, false}, {mapServiceCounters, false}, {mapSourceRanges, false}, {mapHandovers, false}, {mapLimits, false}, {mapServices, false}, {mapSourceRanges, true}, {mapHandovers, true}, {mapLimits, true}, {mapFrontends, false}, {mapServiceRecords, false}}

// applyAll executes the plans of many frontends, stage by stage.
func (k *kernel) applyAll(plans []*plan) error {
	byStage := map[stage][]write{}
	for _, p := range plans {
		for _, w := range p.writes {
			s := stage{w.mapName, w.value == nil}
			byStage[s] = append(byStage[s], w)
		}
	}
	for _, s := range frontendStages {
		writes := byStage[s]
		if s.mapName == mapNumbers && len(writes) > 0 {
			writes = writes[len(writes)-1:] // the last one has the highest numbers
		}
		if err := k.applyStage(s, writes); err != nil {
			return err
		}
	}
	return nil
}

// minBatch is the number of writes from which on they are written in a batch.
const minBatch = 8

func (k *kernel) applyStage(s stage, writes []write) error {
	if len(writes) < minBatch || s.remove || s.mapName == mapServiceCounters || s.mapName == mapSourceRanges || s.mapName == mapLimits {
		return k.apply(writes)
	}
	keys, values := reflect.MakeSlice(reflect.SliceOf(reflect.TypeOf(writes[0].key)), 0, len(writes)), reflect.MakeSlice(reflect.SliceOf(reflect.TypeOf(writes[0].value)), 0, len(writes))
	for _, w := range writes {
		keys, values = reflect.Append(keys, reflect.ValueOf(w.key)), reflect.Append(values, reflect.ValueOf(w.value))
	}
	if _, err := k.maps[s.mapName].BatchUpdate(keys.Interface(), values.Interface(), nil); err != nil {
		return fmt.Errorf("map %s: %w", s.mapName, err)
	}
	return nil
}

// installTables installs the queued tables, all together: the kernel takes 10 ms for one table as for a thousand.
func (k *kernel) installTables() error {
	if len(k.pendingTables) == 0 {
		return nil
	}
	var pools, files []uint32
	for pool, table := range k.pendingTables {
		pools, files = append(pools, pool), append(files, uint32(table.FD()))
	}
	_, err := k.objects.Pools.BatchUpdate(pools, files, nil)
	for _, table := range k.pendingTables {
		err = errors.Join(err, table.Close())
	}
	clear(k.pendingTables)
	if err != nil {
		return fmt.Errorf("map %s: %w", mapPools, err)
	}
	return nil
}

// queueTable queues the table of a pool for installTables.
func (k *kernel) queueTable(pool uint32, table *ebpf.Map) {
	if former := k.pendingTables[pool]; former != nil {
		_ = former.Close()
	}
	k.pendingTables[pool] = table
}

// Apply writes the changes to the maps.
func (b *Backend) Apply(_ context.Context, c dataplane.Change) (dataplane.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := &apply{backend: b, forwarding: forwardingResults{}, shares: b.state.shares(), reassigned: map[model.FrontendKey]bool{}}
	a.applyPools(c.UpsertPools)
	a.applyFrontends(c.UpsertFrontends)
	for _, key := range c.DeleteFrontends {
		a.reassigned[key] = true
		a.execute(b.state.planDeleteFrontend(key), nil, dataplane.RecordError{Frontend: key})
	}
	for _, id := range c.DeletePools {
		a.execute(b.state.planDeletePool(id), nil, dataplane.RecordError{Pool: id})
	}
	return dataplane.Result{Operations: a.operations, Failed: a.failed}, a.endReassigned()
}
