package envoy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/backends/dataplane/shares"
	"kubelb.k8c.io/core/model"
)

// apply is the run of one Apply.
type apply struct {
	*Backend
	change     dataplane.Change
	operations uint64
	failed     []dataplane.RecordError
	// touched are frontends whose resources may differ now, gone those that are no more. Others ask somebody else than before, which
	// Envoy need not hear of: that many addresses move at once is no time for work.
	touched, gone, others map[model.FrontendKey]bool
	// cut are frontends that are gone, or another tenant's now: their connections end.
	cut    map[model.FrontendKey]bool
	shares *shares.Shares
}

func newApply(b *Backend, c dataplane.Change) *apply {
	return &apply{Backend: b, change: c, touched: map[model.FrontendKey]bool{}, gone: map[model.FrontendKey]bool{}, others: map[model.FrontendKey]bool{}, cut: map[model.FrontendKey]bool{},
		shares: b.shares()}
}

func (a *apply) run(ctx context.Context) error {
	was := maps.Clone(a.state.frontends)
	a.takePools()
	a.takeFrontends()
	a.takeDeletes()
	// What will be served is written down first: a process that is killed between leaves Envoy with it, or a successor that
	// brings it there.
	a.state.commit()
	if err := a.refuseFirst(); err != nil {
		return err
	}
	a.affinity.forgetRemoved(was, a.state.frontends)
	a.forEachTouched(a.affinity.restrictEndpoints)
	for key := range a.touched {
		a.state.pending[key] = true
	}
	for key := range a.cut {
		a.departures.forget(key)
	}
	refused, err := a.pushAndWait(ctx)
	if err != nil {
		return err
	}
	lingering, err := a.endFormer(was)
	if err != nil {
		return err
	}
	maps.Copy(lingering, refused)
	refused = lingering
	if len(refused) > 0 {
		if err := a.takeBack(was, refused); err != nil {
			return err
		}
	}
	a.forEachTouched(a.affinity.setEndpoints)
	return a.open()
}

// forEachTouched calls do with each frontend that this call changes and does not delete, and with its pool.
func (a *apply) forEachTouched(do func(model.Frontend, model.Pool)) {
	for key := range a.touched {
		if f, exists := a.state.frontends[key]; exists {
			do(f, a.state.pools[f.Pool])
		}
	}
}

func (a *apply) fail(e dataplane.RecordError, err error) {
	e.Message = err.Error()
	a.failed = append(a.failed, e)
}

func (a *apply) takePools() {
	for _, p := range a.change.UpsertPools {
		if err := a.takePool(p); err != nil {
			a.fail(dataplane.RecordError{Pool: p.ID}, err)
			continue
		}
		a.state.setPool(p)
		for key := range a.state.usersOf[p.ID] {
			a.touched[key] = true
		}
		a.operations++
	}
}

func (a *apply) takeFrontends() {
	for _, f := range a.change.UpsertFrontends {
		err := a.check(f)
		if err == nil {
			err = a.takeFrontend(f)
		}
		if err != nil {
			a.fail(dataplane.RecordError{Frontend: f.FrontendKey}, err)
			continue
		}
		if a.asksOthersOnly(f) {
			a.others[f.FrontendKey] = true
		} else {
			a.touched[f.FrontendKey] = true
		}
		if old, known := a.state.frontends[f.FrontendKey]; known && old.Tenant != f.Tenant || a.lingering[f.FrontendKey] {
			a.cut[f.FrontendKey] = true
		}
		a.state.setFrontend(f)
		a.operations++
	}
}

// asksOthersOnly tells whether the frontend is served as it is, and asks somebody else about connections than before.
func (a *apply) asksOthersOnly(f model.Frontend) bool {
	old, known := a.state.frontends[f.FrontendKey]
	if !known || a.touched[f.FrontendKey] || a.state.pending[f.FrontendKey] || old.Handover == f.Handover {
		return false
	}
	old.Handover, f.Handover = model.Handover{}, model.Handover{}
	return old.Text() == f.Text()
}

// check says why a frontend cannot be taken here.
func (a *apply) check(f model.Frontend) error {
	if _, ok := a.state.pools[f.Pool]; !ok {
		return dataplane.MissingPool(f.Pool)
	}
	return a.guard.usable(f.VIP)
}

func (a *apply) takeDeletes() {
	for _, key := range a.change.DeleteFrontends {
		if a.state.deleteFrontend(key) {
			a.gone[key], a.cut[key] = true, true
			a.operations++
		}
		delete(a.touched, key)
		delete(a.others, key)
	}
	for _, id := range a.change.DeletePools {
		if a.state.deletePool(id) {
			a.operations++
		}
	}
}

// refuseFirst shuts what is no longer served before Envoy hears of it.
func (a *apply) refuseFirst() error {
	var empty []guarded
	for _, key := range sortedKeys(a.touched) {
		if f := a.state.frontends[key]; a.state.empty(f) || a.cut[key] {
			empty = append(empty, a.state.guarded(f, false))
		}
	}
	return a.guard.change(empty, sortedKeys(a.gone))
}

// endFormer ends the connections of frontends that are gone, or another tenant's, before anything is let through to them again. It returns why a
// frontend has to wait: a connection that cannot be ended would go on to the former tenant's endpoints.
func (a *apply) endFormer(was map[model.FrontendKey]model.Frontend) (map[string]string, error) {
	waits := map[string]string{}
	stay := hostflows.End(a.cut)
	if stay != nil && !errors.Is(stay, hostflows.ErrCannotEndSockets) {
		return waits, stay
	}
	var established map[netip.AddrPort]int
	if stay != nil {
		var err error
		if established, err = tcpSockets(tcpEstablished); err != nil {
			return waits, err
		}
	}
	for key := range a.cut {
		if key.Protocol != model.TCP || established[netip.AddrPortFrom(key.VIP, key.Port)] == 0 {
			delete(a.lingering, key)
			continue
		}
		a.lingering[key] = true
		delete(was, key)
		waits[key.String()] = fmt.Sprintf("connections of the tenant that had %s before go on, for up to %s, and another one is not served until they have ended: %v", key, a.drainTime, stay)
	}
	return waits, nil
}

// open lets through what Envoy serves now.
func (a *apply) open() error {
	var set []guarded
	for _, key := range slices.Concat(sortedKeys(a.touched), sortedKeys(a.others)) {
		if f, ok := a.state.frontends[key]; ok {
			set = append(set, a.state.guarded(f, !a.state.empty(f)))
		}
		delete(a.state.pending, key)
	}
	return a.guard.change(set, nil)
}

// pushAndWait gives Envoy the changes and returns why it refuses some, by name. Clusters come before their assignments,
// which Envoy asks for only then, and before the listeners that use them.
func (a *apply) pushAndWait(ctx context.Context) (map[string]string, error) {
	p, err := a.push(sortedKeys(a.touched), sortedKeys(a.gone))
	if err != nil {
		return nil, err
	}
	if err := a.serve(); err != nil {
		return nil, err
	}
	want := slices.Concat(p[resource.ClusterType], p[resource.ListenerType])
	ctx, cancel := patient(ctx)
	defer cancel()
	refused, err := a.xds.await(ctx, want)
	if err != nil {
		return nil, a.explain(err)
	}
	var assignments []named
	for _, n := range p[resource.EndpointType] {
		frontend, _, _ := strings.Cut(n.name, "|")
		if refused[frontend] == "" && n.version != "" {
			assignments = append(assignments, n)
		}
	}
	if _, err := a.xds.await(ctx, assignments); err != nil {
		return nil, a.explain(err)
	}
	var sockets []model.FrontendKey
	for _, key := range sortedKeys(a.touched) {
		if refused[key.String()] == "" && key.Protocol == model.TCP && !a.listening[key] {
			sockets = append(sockets, key)
		}
	}
	if err := awaitSockets(ctx, sockets); err != nil {
		return nil, err
	}
	for _, key := range sockets {
		a.listening[key] = true
	}
	return refused, nil
}

// explain adds to the reason for which Envoy has not answered how it ended, if it did, and where its logs are.
func (b *Backend) explain(err error) error {
	if running, failed := b.dir.Running(); failed == nil && running.Ended != "" && errors.Is(err, errNotConnected) {
		return fmt.Errorf("%w (the last one: %s); see %s and %s", err, running.Ended, b.dir.Log(), b.dir.OwnLog())
	}
	return fmt.Errorf("%w; see %s", err, b.dir.Log())
}

// takeBack returns frontends that Envoy refuses to what they were.
func (a *apply) takeBack(was map[model.FrontendKey]model.Frontend, refused map[string]string) error {
	var back, gone []model.FrontendKey
	for _, key := range sortedKeys(a.touched) {
		reason, bad := refused[key.String()]
		if !bad {
			continue
		}
		a.fail(dataplane.RecordError{Frontend: key}, errors.New(reason))
		if old, ok := was[key]; ok {
			a.state.setFrontend(old)
			back = append(back, key)
			continue
		}
		a.state.deleteFrontend(key)
		delete(a.touched, key)
		gone = append(gone, key)
	}
	if _, err := a.push(back, gone); err != nil {
		return err
	}
	a.state.commit()
	return nil
}

// Apply gives Envoy what differs, and returns when Envoy has taken or refused it.
func (b *Backend) Apply(ctx context.Context, c dataplane.Change) (dataplane.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.noteState()
	a := newApply(b, c)
	if err := a.run(ctx); err != nil {
		return dataplane.Result{}, err
	}
	return dataplane.Result{Operations: a.operations, Failed: a.failed}, nil
}

// push puts the resources of frontends into the caches, and takes those of others out.
func (b *Backend) push(changed, gone []model.FrontendKey) (pushed, error) {
	now := time.Now()
	byKind := map[string]map[string]types.Resource{}
	for _, kind := range kinds {
		byKind[kind] = map[string]types.Resource{}
	}
	for _, key := range changed {
		f := b.state.frontends[key]
		r := render(f, b.state.pools[f.Pool], b.timeouts, b.departures.note(f, b.state.pools[f.Pool], now))
		name := key.String()
		byKind[resource.ClusterType][name], byKind[resource.ListenerType][name] = r.cluster, r.listener
		byKind[resource.EndpointType][r.assignment.ClusterName] = r.assignment
		if b.assigned[key] == nil {
			b.assigned[key] = map[string]bool{}
		}
		b.assigned[key][r.assignment.ClusterName] = true
	}
	names := map[string][]string{}
	for _, key := range gone {
		for _, kind := range []string{resource.ClusterType, resource.ListenerType} {
			names[kind] = append(names[kind], key.String())
		}
		names[resource.EndpointType] = slices.AppendSeq(names[resource.EndpointType], maps.Keys(b.assigned[key]))
		delete(b.assigned, key)
		b.departures.forget(key)
		delete(b.listening, key)
	}
	p := pushed{}
	for _, kind := range kinds {
		want, err := b.xds.update(kind, byKind[kind], names[kind])
		if err != nil {
			return nil, err
		}
		p[kind] = want
	}
	return p, nil
}

// pushed is what Envoy is to take, by kind.
type pushed map[string][]named

// sortedKeys are the keys in the model's order.
func sortedKeys(m map[model.FrontendKey]bool) []model.FrontendKey {
	return slices.SortedFunc(maps.Keys(m), model.FrontendKey.Compare)
}
