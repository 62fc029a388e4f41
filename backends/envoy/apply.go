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

// apply is the state of one call of Apply.
type apply struct {
	*Backend
	change     dataplane.Change
	operations uint64
	failed     []dataplane.RecordError
	// changed has the frontends whose resources may have changed, deleted the deleted frontends. redirectsOnly has the frontends of which only the
	// redirect has changed. A redirect is not sent to Envoy: at a failover many addresses move at once, and redirects have to be fast.
	changed, deleted, redirectsOnly map[model.FrontendKey]bool
	// reassigned are frontends that were deleted or belong to another tenant now: their connections end.
	reassigned map[model.FrontendKey]bool
	shares     *shares.Shares
}

func newApply(b *Backend, c dataplane.Change) *apply {
	return &apply{Backend: b, change: c, changed: map[model.FrontendKey]bool{}, deleted: map[model.FrontendKey]bool{}, redirectsOnly: map[model.FrontendKey]bool{}, reassigned: map[model.FrontendKey]bool{},
		shares: b.shares()}
}

func (a *apply) run(ctx context.Context) error {
	before := maps.Clone(a.state.frontends)
	a.applyPools()
	a.noteCounted(ctx)
	a.applyFrontends()
	a.applyDeletes()
	for key := range a.changed {
		a.state.pending[key] = true
	}
	// The state is written first: if this process is killed before Envoy has all changes, the next one sends them.
	a.state.commit()
	if err := a.refuseRemoved(); err != nil {
		return err
	}
	a.affinity.deleteClients(before, a.state.frontends)
	a.forEachChanged(a.affinity.restrictEndpoints)
	for key := range a.reassigned {
		a.removedEndpoints.delete(key)
	}
	refused, err := a.pushAndWait(ctx)
	if err != nil {
		return err
	}
	waiting, err := a.endFormerConnections(before)
	if err != nil {
		return err
	}
	maps.Copy(waiting, refused)
	refused = waiting
	if len(refused) > 0 {
		if err := a.revert(before, refused); err != nil {
			return err
		}
	}
	a.forEachChanged(a.affinity.setEndpoints)
	if err := a.allow(); err != nil {
		return err
	}
	a.state.settle()
	return nil
}

// forEachChanged calls do for each changed frontend, with its pool.
func (a *apply) forEachChanged(do func(model.Frontend, model.Pool)) {
	for key := range a.changed {
		if f, exists := a.state.frontends[key]; exists {
			do(f, a.state.pools[f.Pool])
		}
	}
}

func (a *apply) fail(e dataplane.RecordError, err error) {
	e.Message = err.Error()
	a.failed = append(a.failed, e)
}

func (a *apply) applyPools() {
	for _, p := range a.change.UpsertPools {
		if err := a.replacePool(p); err != nil {
			a.fail(dataplane.RecordError{Pool: p.ID}, err)
			continue
		}
		a.state.setPool(p)
		for key := range a.state.usersOf[p.ID] {
			a.changed[key] = true
		}
		a.operations++
	}
}

func (a *apply) applyFrontends() {
	for _, f := range a.change.UpsertFrontends {
		err := a.check(f)
		if err == nil {
			err = a.replaceFrontend(f)
		}
		if err != nil {
			a.fail(dataplane.RecordError{Frontend: f.FrontendKey}, err)
			continue
		}
		if a.changesRedirectOnly(f) {
			a.redirectsOnly[f.FrontendKey] = true
		} else {
			a.changed[f.FrontendKey] = true
		}
		if old, known := a.state.frontends[f.FrontendKey]; known && old.Tenant != f.Tenant || a.formerConnections[f.FrontendKey] {
			a.reassigned[f.FrontendKey] = true
		}
		a.state.setFrontend(f)
		a.operations++
	}
}

// changesRedirectOnly reports whether only the redirect of the frontend has changed.
func (a *apply) changesRedirectOnly(f model.Frontend) bool {
	old, known := a.state.frontends[f.FrontendKey]
	if !known || a.changed[f.FrontendKey] || a.state.pending[f.FrontendKey] || old.Redirect == f.Redirect {
		return false
	}
	old.Redirect, f.Redirect = model.Redirect{}, model.Redirect{}
	return old.Text() == f.Text()
}

// check returns an error if the frontend cannot be served here.
func (a *apply) check(f model.Frontend) error {
	pool, ok := a.state.pools[f.Pool]
	if !ok {
		return dataplane.MissingPool(f.Pool)
	}
	if len(pool.Endpoints) > 0 && pool.Endpoints[0].Address.Is4() != f.VIP.Is4() {
		return dataplane.OtherFamily(f.Pool)
	}
	return a.ruleset.checkFamily(f.VIP)
}

func (a *apply) applyDeletes() {
	for _, key := range a.change.DeleteFrontends {
		if a.state.deleteFrontend(key) {
			a.deleted[key], a.reassigned[key] = true, true
			a.operations++
		}
		delete(a.changed, key)
		delete(a.redirectsOnly, key)
	}
	for _, id := range a.change.DeletePools {
		if a.state.deletePool(id) {
			a.operations++
		}
	}
}

// refuseRemoved refuses flows to frontends that are not served any more, before Envoy gets the change.
func (a *apply) refuseRemoved() error {
	var empty []frontendRules
	for _, key := range sortedKeys(a.changed) {
		if f := a.state.frontends[key]; a.state.empty(f) || a.reassigned[key] {
			empty = append(empty, a.state.rulesOf(f, false))
		}
	}
	return a.ruleset.change(empty, sortedKeys(a.deleted))
}

// endFormerConnections ends the connections of frontends that were deleted or belong to another tenant now, before flows to them are allowed again. It
// returns the frontends that have to wait, with the reason: a connection that cannot be ended would go on to the former tenant's endpoints.
func (a *apply) endFormerConnections(before map[model.FrontendKey]model.Frontend) (map[string]string, error) {
	waiting := map[string]string{}
	cannotEnd := hostflows.End(a.reassigned)
	if cannotEnd != nil && !errors.Is(cannotEnd, hostflows.ErrCannotEndSockets) {
		return waiting, cannotEnd
	}
	var established map[netip.AddrPort]int
	if cannotEnd != nil {
		var err error
		if established, err = tcpSockets(tcpEstablished); err != nil {
			return waiting, err
		}
	}
	for key := range a.reassigned {
		if key.Protocol != model.TCP || established[netip.AddrPortFrom(key.VIP, key.Port)] == 0 {
			delete(a.formerConnections, key)
			continue
		}
		a.formerConnections[key] = true
		delete(before, key)
		waiting[key.String()] = fmt.Sprintf("connections to %s of its former tenant go on for up to %s; the new tenant is served when they have ended: %v", key, a.drainTime, cannotEnd)
	}
	return waiting, nil
}

// allow allows flows to the frontends that Envoy serves now.
func (a *apply) allow() error {
	var set []frontendRules
	for _, key := range slices.Concat(sortedKeys(a.changed), sortedKeys(a.redirectsOnly)) {
		if f, ok := a.state.frontends[key]; ok {
			set = append(set, a.state.rulesOf(f, !a.state.empty(f)))
		}
		delete(a.state.pending, key)
	}
	return a.ruleset.change(set, nil)
}

// pushAndWait sends the changes to Envoy and returns the refused ones by name, with the reason. Clusters come before their
// assignments, which Envoy requests only then, and before the listeners that use them.
func (a *apply) pushAndWait(ctx context.Context) (map[string]string, error) {
	p, err := a.push(sortedKeys(a.changed), sortedKeys(a.deleted))
	if err != nil {
		return nil, err
	}
	if err := a.serve(); err != nil {
		return nil, err
	}
	want := slices.Concat(p[resource.ClusterType], p[resource.ListenerType])
	ctx, cancel := withAnswerTimeout(ctx)
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
	for _, key := range sortedKeys(a.changed) {
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

// explain adds to an error of xds.await how Envoy ended, if it has, and where its logs are.
func (b *Backend) explain(err error) error {
	if running, failed := b.dir.Running(); failed == nil && running.Ended != "" && errors.Is(err, errNotConnected) {
		return fmt.Errorf("%w (the last Envoy: %s); see %s and %s", err, running.Ended, b.dir.Log(), b.dir.OwnLog())
	}
	return fmt.Errorf("%w; see %s", err, b.dir.Log())
}

// revert restores the former state of refused frontends.
func (a *apply) revert(before map[model.FrontendKey]model.Frontend, refused map[string]string) error {
	var restored, gone []model.FrontendKey
	for _, key := range sortedKeys(a.changed) {
		reason, bad := refused[key.String()]
		if !bad {
			continue
		}
		a.fail(dataplane.RecordError{Frontend: key}, errors.New(reason))
		if old, ok := before[key]; ok {
			a.state.setFrontend(old)
			restored = append(restored, key)
			continue
		}
		a.state.deleteFrontend(key)
		delete(a.changed, key)
		gone = append(gone, key)
	}
	if _, err := a.push(restored, gone); err != nil {
		return err
	}
	a.state.commit()
	return nil
}

// Apply sends the change to Envoy, and returns when Envoy has accepted or refused it.
func (b *Backend) Apply(ctx context.Context, c dataplane.Change) (dataplane.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.updateNotes()
	a := newApply(b, c)
	if err := a.run(ctx); err != nil {
		return dataplane.Result{}, err
	}
	return dataplane.Result{Operations: a.operations, Failed: a.failed}, nil
}

// push adds the resources of changed frontends to the caches, and removes those of deleted ones.
func (b *Backend) push(changed, gone []model.FrontendKey) (pushed, error) {
	now := time.Now()
	byKind := map[string]map[string]types.Resource{}
	for _, kind := range kinds {
		byKind[kind] = map[string]types.Resource{}
	}
	for _, key := range changed {
		f := b.state.frontends[key]
		r := render(f, b.state.pools[f.Pool], b.timeouts, b.removedEndpoints.update(f, b.state.pools[f.Pool], now))
		name := key.String()
		byKind[resource.ClusterType][name], byKind[resource.ListenerType][name] = r.cluster, r.listener
		byKind[resource.EndpointType][r.assignment.ClusterName] = r.assignment
		if b.assignmentNames[key] == nil {
			b.assignmentNames[key] = map[string]bool{}
		}
		b.assignmentNames[key][r.assignment.ClusterName] = true
	}
	names := map[string][]string{}
	for _, key := range gone {
		for _, kind := range []string{resource.ClusterType, resource.ListenerType} {
			names[kind] = append(names[kind], key.String())
		}
		names[resource.EndpointType] = slices.AppendSeq(names[resource.EndpointType], maps.Keys(b.assignmentNames[key]))
		delete(b.assignmentNames, key)
		b.removedEndpoints.delete(key)
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

// pushed has the resources that Envoy has to accept, by kind.
type pushed map[string][]named

// sortedKeys returns the keys in the model's order.
func sortedKeys(m map[model.FrontendKey]bool) []model.FrontendKey {
	return slices.SortedFunc(maps.Keys(m), model.FrontendKey.Compare)
}
