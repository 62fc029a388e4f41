package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
)

// addressAllocator allocates the addresses of AddressPools. Before the first allocation it reads all allocations in statuses from the API server, since a
// cache may lag and no address may be allocated twice.
type addressAllocator struct {
	reader client.Reader
	// used finds the addresses that no AddressPool may cover. It may be nil.
	used      usedAddresses
	mu        sync.Mutex // guards the fields below
	loaded    bool
	allocator *ipam.Allocator
	poolState
	// unconfirmed are owners that have given back an address or a port, with the time. They keep it until it is removed from their status and no gateway
	// serves it for them any more.
	unconfirmed map[string]time.Time
	// reservationEnded: a reservation has ended, and LoadBalancers that wait for an address have not been reconciled yet.
	reservationEnded bool
}

// load reads all allocations at the first call.
func (b *addressAllocator) load(ctx context.Context) error {
	b.mu.Lock()
	loaded := b.loaded
	b.mu.Unlock()
	if loaded {
		return nil
	}
	var pools v1alpha1.AddressPoolList
	if err := b.reader.List(ctx, &pools); err != nil {
		return fmt.Errorf("read the AddressPools: %w", err)
	}
	found, err := b.evaluate(ctx, pools.Items)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.loaded {
		return nil
	}
	records, err := b.readRecords(ctx)
	if err != nil {
		return err
	}
	b.allocator, b.unconfirmed = ipam.NewAllocator(), map[string]time.Time{}
	b.setPools(found)
	for _, r := range records {
		for _, conflict := range b.allocator.Adopt(r.owner, r.Claim, r.Allocations) {
			log.FromContext(ctx).Error(conflict, "two LoadBalancers have the same address: the older one keeps it")
		}
	}
	b.allocator.SetTime(time.Now())
	for i := range pools.Items {
		for _, r := range pools.Items[i].Status.Reserved {
			if address, err := netip.ParseAddr(r.Address); err == nil {
				b.allocator.Reserve(ipam.Reservation{Address: address, Namespace: v1alpha1.TenantNamespacePrefix + r.Tenant, Until: r.Until.Time})
			}
		}
	}
	b.loaded = true
	return nil
}

// record is the allocation in the status of a LoadBalancer.
type record struct {
	owner   string
	created metav1.Time
	uid     types.UID
	ipam.OwnerState
}

// readRecords reads the allocations in all statuses, the oldest LoadBalancer first. It keeps nothing else of the LoadBalancers: all of them together
// may be larger than the memory of this process.
func (b *addressAllocator) readRecords(ctx context.Context) (out []record, err error) {
	reset := func() { out = nil }
	err = eachPage(ctx, b.reader, func() *v1alpha1.LoadBalancerList { return &v1alpha1.LoadBalancerList{} }, reset, func(page *v1alpha1.LoadBalancerList) error {
		for i := range page.Items {
			lb := &page.Items[i]
			request := convert.WithoutTargets(lb)
			out = append(out, record{request.ObjectName.String(), lb.CreationTimestamp, lb.UID, ipam.OwnerState{Claim: request.Claim(), Allocations: convert.Allocations(lb)}})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the allocations of LoadBalancers: %w", err)
	}
	// If two LoadBalancers have the same address, which only a foreign write to a status can cause, the older one keeps it.
	slices.SortFunc(out, func(x, y record) int {
		return cmp.Or(x.created.Compare(y.created.Time), cmp.Compare(x.uid, y.uid))
	})
	return out, nil
}

// setPools replaces the AddressPools. mu is held.
func (b *addressAllocator) setPools(j poolState) {
	b.poolState = j
	b.allocator.SetPools(b.pools)
	b.allocator.SetHosts(b.hosts)
}

// refresh replaces the AddressPools and reports whether they, or the external ranges, have changed.
func (b *addressAllocator) refresh(ctx context.Context, items []v1alpha1.AddressPool) (differs bool, err error) {
	j, err := b.evaluate(ctx, items)
	if err != nil {
		return false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.poolState
	b.setPools(j)
	return !reflect.DeepEqual(before.pools, j.pools) || !reflect.DeepEqual(before.external, j.external), nil
}

// allocation has the addresses and ports of a LoadBalancer.
type allocation struct {
	addresses []ipam.Allocation
	// admitted are the served ports if a limit excludes others; nil for all.
	admitted *[]translate.Port
	refusal  *ipam.Refusal
	// freed: the LoadBalancer has given back an address or a port for which others may wait.
	freed bool
	// since is when it did so. state is what it has without that.
	since time.Time
	state ipam.OwnerState
}

// allocate changes the allocation of the LoadBalancer to its request, or returns a refusal. No other LoadBalancer gets what this one gives back before
// the call of confirm.
func (b *addressAllocator) allocate(lb translate.LoadBalancer, recorded []ipam.Allocation, limits ipam.Limits, refused bool) (a allocation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.allocator.CountReservations()
	b.allocator.SetTime(time.Now())
	defer func() { b.reservationEnded = b.reservationEnded || b.allocator.CountReservations() < kept }()
	owner := lb.ObjectName.String()
	was := b.allocator.StateOf(owner)
	since, unconfirmed := b.unconfirmed[owner]
	if unconfirmed {
		// As after a restart: begin with the allocation in the status.
		b.allocator.Release(owner)
		b.allocator.Adopt(owner, lb.Claim(), recorded)
	}
	a.refusal = lb.Allocate(b.allocator, limits, refused)
	a.state = b.allocator.StateOf(owner)
	a.addresses, a.admitted = a.state.Allocations, lb.AdmittedPorts
	gone := slices.ContainsFunc(was.Allocations, func(g ipam.Allocation) bool { return !slices.Contains(a.addresses, g) })
	if a.freed = gone || len(was.Allocations) > 0 && len(a.state.Claim.Ports) < len(was.Claim.Ports); a.freed {
		if a.since = since; !unconfirmed {
			a.since = time.Now()
		}
		b.unconfirmed[owner] = a.since
		b.allocator.Retain(owner, was)
	} else {
		delete(b.unconfirmed, owner)
	}
	return a
}

// confirm ends the wait for an allocation that is in the status: gateways serve nothing else for the owner.
func (b *addressAllocator) confirm(owner string, a allocation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, unconfirmed := b.unconfirmed[owner]; unconfirmed {
		delete(b.unconfirmed, owner)
		b.allocator.Release(owner)
		if len(a.state.Allocations) > 0 {
			b.allocator.Adopt(owner, a.state.Claim, a.state.Allocations)
		}
	}
}

func (b *addressAllocator) release(owner string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.allocator != nil {
		b.allocator.Release(owner)
		delete(b.unconfirmed, owner)
	}
}

// countOf returns what all LoadBalancers of a namespace have together.
func (b *addressAllocator) countOf(namespace string) ipam.Count {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.allocator.CountOf(namespace)
}

// ranges returns all external ranges.
func (b *addressAllocator) ranges() []ipam.Range {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []ipam.Range
	for _, name := range slices.Sorted(maps.Keys(b.external)) {
		out = append(out, b.external[name]...)
	}
	return out
}

// poolReconciler passes changes of AddressPools to the allocator, and writes their status.
type poolReconciler struct {
	client    client.Client
	addresses *addressAllocator
	changed   chan<- event.GenericEvent
	metrics   *metrics
	// nodes: Nodes can be read.
	nodes bool
}

// burstDelay makes one reconcile of a burst of changes.
const burstDelay = 500 * time.Millisecond

func (r *poolReconciler) setUp(mgr ctrl.Manager) error {
	all := func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{{}} }
	once := debounced(sameRequest)
	controller := ctrl.NewControllerManagedBy(mgr).Named("addresspool").
		Watches(&v1alpha1.AddressPool{}, handler.EnqueueRequestsFromMapFunc(all)).
		Watches(&v1alpha1.LoadBalancer{}, once).
		// For addresses that no AddressPool may cover, and for the metrics.
		Watches(&v1alpha1.Tenant{}, once).
		// For addresses that no AddressPool may cover.
		Watches(&v1alpha1.Addresses{}, once).
		Watches(&v1alpha1.Gateway{}, once, builder.WithPredicates(addressesDiffer)).
		Watches(&v1alpha1.BGPPeer{}, once, builder.WithPredicates(predicate.GenerationChangedPredicate{}))
	if r.nodes {
		controller = controller.Watches(&corev1.Node{}, once, builder.WithPredicates(addressesDiffer))
	}
	return controller.Complete(r)
}

// sameRequest returns the only request of a reconciler that reconciles all objects together.
func sameRequest(client.Object) reconcile.Request { return reconcile.Request{} }

// debounced enqueues the request of a changed object after burstDelay.
func debounced(of func(client.Object) reconcile.Request) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { q.AddAfter(of(e.Object), burstDelay) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { q.AddAfter(of(e.ObjectNew), burstDelay) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { q.AddAfter(of(e.Object), burstDelay) },
	}
}

// Reconcile reconciles all AddressPools together, since they may overlap.
func (r *poolReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if err := r.addresses.load(ctx); err != nil {
		return reconcile.Result{}, err
	}
	var list v1alpha1.AddressPoolList
	if err := r.client.List(ctx, &list); err != nil {
		return reconcile.Result{}, err
	}
	ended, next := r.addresses.expire(time.Now())
	differs, err := r.addresses.refresh(ctx, slices.Clone(list.Items))
	if err != nil {
		return reconcile.Result{}, err
	}
	if differs || ended {
		select {
		case r.changed <- event.GenericEvent{Object: &v1alpha1.AddressPool{}}:
		default: // an event is waiting already
		}
	}
	var errs []error
	for i := range list.Items {
		errs = append(errs, r.updateStatus(ctx, &list.Items[i]))
	}
	result := reconcile.Result{}
	if !next.IsZero() {
		result.RequeueAfter = max(time.Until(next), time.Millisecond)
	}
	return retryConflicts(ctx, result, errors.Join(append(errs, r.updateMetrics(ctx, list.Items))...))
}

// updateMetrics updates the metrics.
func (r *poolReconciler) updateMetrics(ctx context.Context, pools []v1alpha1.AddressPool) error {
	var lbs v1alpha1.LoadBalancerList
	var tenants v1alpha1.TenantList
	if err := errors.Join(r.client.List(ctx, &lbs, client.UnsafeDisableDeepCopy), r.client.List(ctx, &tenants, client.UnsafeDisableDeepCopy)); err != nil {
		return err
	}
	r.metrics.update(pools, lbs.Items, tenants.Items)
	return nil
}

func (r *poolReconciler) updateStatus(ctx context.Context, pool *v1alpha1.AddressPool) error {
	before := pool.Status.DeepCopy()
	r.addresses.mu.Lock()
	four, six := r.addresses.allocator.Usage(pool.Name, ipam.IPv4), r.addresses.allocator.Usage(pool.Name, ipam.IPv6)
	reserved := r.addresses.allocator.ReservationsOf(pool.Name)
	pool.Status.Addresses = nil
	for _, external := range r.addresses.external[pool.Name] {
		pool.Status.Addresses = append(pool.Status.Addresses, external.String())
	}
	condition := r.addresses.readiness(pool.Name)
	r.addresses.mu.Unlock()
	pool.Status.Reserved = reservedAddresses(reserved)
	pool.Status.IPv4 = &v1alpha1.AddressCount{Used: four.Used, Free: four.Free.String()}
	pool.Status.IPv6 = &v1alpha1.AddressCount{Used: six.Used, Free: six.Free.String()}
	condition.ObservedGeneration = pool.Generation
	plain.SetCondition(&pool.Status.Conditions, condition)
	if equality.Semantic.DeepEqual(before, &pool.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.client.Status().Update(ctx, pool))
}

// readiness returns the condition Ready of an AddressPool. mu is held.
func (b *addressAllocator) readiness(pool string) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "addresses can be allocated"}
	if skipped := b.skipped[pool]; len(skipped) > 0 {
		c.Message += ", except " + phrase.Few(skipped, ", ")
	}
	if problem, bad := b.bad[pool]; bad {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, problem.Reason, problem.Message
	}
	return c
}

// addressesHandler requests a tenant's LoadBalancers only if an Addresses object is created or deleted, or if its refused addresses or its families
// change. A new node changes nothing in the status of a LoadBalancer.
func (r *loadBalancerReconciler) addressesHandler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	wake := func(ctx context.Context, o client.Object, q queue) {
		for _, request := range r.loadBalancersIn(ctx, o.GetNamespace()) {
			q.Add(request)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { wake(ctx, e.Object, q) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { wake(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			before, after := e.ObjectOld.(*v1alpha1.Addresses), e.ObjectNew.(*v1alpha1.Addresses)
			if !reflect.DeepEqual(r.checkList(ctx, before), r.checkList(ctx, after)) {
				wake(ctx, after, q)
			}
		},
	}
}

// listResult has the problems of an Addresses object, and the families of its usable addresses.
type listResult struct {
	problems []translate.Problem
	families []ipam.Family
}

func (r *loadBalancerReconciler) checkList(ctx context.Context, a *v1alpha1.Addresses) (out listResult) {
	tenant, err := r.tenantOf(ctx, a.Namespace)
	if err != nil || tenant == nil {
		return out
	}
	// The reconciler gets the same error, and reports it.
	_ = r.filter.with(ctx, func(filter translate.TargetFilter) {
		out.problems, out.families = translate.CheckAddressFamilies(convert.Addresses(a), *tenant, filter)
	})
	return out
}
