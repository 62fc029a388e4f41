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

// addressBook is the allocation. Before the first new grant it takes over what stands in all statuses, read from the API
// server itself and not from a cache that may lag: an address is never dealt twice.
type addressBook struct {
	reader client.Reader
	// used tells which addresses no pool may cover; nil for none.
	used   usedAddresses
	mu     sync.Mutex // guards all below
	loaded bool
	book   *ipam.Allocator
	judged
	// unsettled are holders that have given something back, and since when: it is theirs until it is known that it is neither on record nor
	// served for them any more.
	unsettled map[string]time.Time
	// ended: an address is kept no more, and who waits for one has not been told.
	ended bool
}

// load fills the book at the first call.
func (b *addressBook) load(ctx context.Context) error {
	b.mu.Lock()
	loaded := b.loaded
	b.mu.Unlock()
	if loaded {
		return nil
	}
	var pools v1alpha1.AddressPoolList
	if err := b.reader.List(ctx, &pools); err != nil {
		return fmt.Errorf("read the address pools: %w", err)
	}
	found, err := b.judge(ctx, pools.Items)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.loaded {
		return nil
	}
	records, err := b.records(ctx)
	if err != nil {
		return err
	}
	b.book, b.unsettled = ipam.NewAllocator(), map[string]time.Time{}
	b.setPools(found)
	for _, r := range records {
		for _, conflict := range b.book.Adopt(r.holder, r.Claim, r.Grants) {
			log.FromContext(ctx).Error(conflict, "address on record twice: the older LoadBalancer keeps it")
		}
	}
	b.book.At(time.Now())
	for i := range pools.Items {
		for _, r := range pools.Items[i].Status.Reserved {
			if address, err := netip.ParseAddr(r.Address); err == nil {
				b.book.Reserve(ipam.Reservation{Address: address, Namespace: v1alpha1.TenantNamespacePrefix + r.Tenant, Until: r.Until.Time})
			}
		}
	}
	b.loaded = true
	return nil
}

// record is what the status of a LoadBalancer says that it has.
type record struct {
	holder  string
	created metav1.Time
	uid     types.UID
	ipam.Holding
}

// records reads what stands in all statuses, the oldest LoadBalancer first. Nothing else of the LoadBalancers is kept: all of them together may be larger
// than this process.
func (b *addressBook) records(ctx context.Context) (out []record, err error) {
	begin := func() { out = nil }
	err = eachPage(ctx, b.reader, func() *v1alpha1.LoadBalancerList { return &v1alpha1.LoadBalancerList{} }, begin, func(page *v1alpha1.LoadBalancerList) error {
		for i := range page.Items {
			lb := &page.Items[i]
			asks := convert.WithoutTargets(lb)
			out = append(out, record{asks.ObjectName.String(), lb.CreationTimestamp, lb.UID, ipam.Holding{Claim: asks.Claim(), Grants: convert.Grants(lb)}})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the allocations on record: %w", err)
	}
	// The oldest keeps an address that two claim, which only foreign writes to a status can bring about.
	slices.SortFunc(out, func(x, y record) int {
		return cmp.Or(x.created.Compare(y.created.Time), cmp.Compare(x.uid, y.uid))
	})
	return out, nil
}

// setPools takes over what was judged. mu is held.
func (b *addressBook) setPools(j judged) {
	b.judged = j
	b.book.SetPools(b.pools)
	b.book.SetHosts(b.hosts)
}

// refresh takes the pools as they stand and reports whether they, or what is external, differ from before.
func (b *addressBook) refresh(ctx context.Context, items []v1alpha1.AddressPool) (differs bool, err error) {
	j, err := b.judge(ctx, items)
	if err != nil {
		return false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.judged
	b.setPools(j)
	return !reflect.DeepEqual(before.pools, j.pools) || !reflect.DeepEqual(before.external, j.external), nil
}

// allocation is what a LoadBalancer has.
type allocation struct {
	grants []ipam.Grant
	// admitted are the ports that are served where a limit keeps others out; nil for all.
	admitted *[]translate.Port
	refusal  *ipam.Refusal
	// freed: its tenant will have less than before, of something that others may wait for.
	freed bool
	// since is when that began, is what it has without that.
	since time.Time
	is    ipam.Holding
}

// allocate returns what the LoadBalancer has when it has got what it asks for, or was refused. What it gives back nobody else gets before
// settle is told that this is on record.
func (b *addressBook) allocate(lb translate.LoadBalancer, onRecord []ipam.Grant, limits ipam.Limits, refused bool) (a allocation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.book.Reservations()
	b.book.At(time.Now())
	defer func() { b.ended = b.ended || b.book.Reservations() < kept }()
	holder := lb.ObjectName.String()
	was := b.book.HoldingOf(holder)
	since, unsettled := b.unsettled[holder]
	if unsettled {
		// As after a restart. If that is not what is on record any more, it cannot be changed by this either.
		b.book.Release(holder)
		b.book.Adopt(holder, lb.Claim(), onRecord)
	}
	a.refusal = lb.Allocate(b.book, limits, refused)
	a.is = b.book.HoldingOf(holder)
	a.grants, a.admitted = a.is.Grants, lb.AdmittedPorts
	gone := slices.ContainsFunc(was.Grants, func(g ipam.Grant) bool { return !slices.Contains(a.grants, g) })
	if a.freed = gone || len(was.Grants) > 0 && len(a.is.Claim.Ports) < len(was.Claim.Ports); a.freed {
		if a.since = since; !unsettled {
			a.since = time.Now()
		}
		b.unsettled[holder] = a.since
		b.book.Retain(holder, was)
	} else {
		delete(b.unsettled, holder)
	}
	return a
}

// settle is told that an allocation is on record, and nothing else is served.
func (b *addressBook) settle(holder string, a allocation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, unsettled := b.unsettled[holder]; unsettled {
		delete(b.unsettled, holder)
		b.book.Release(holder)
		if len(a.is.Grants) > 0 {
			b.book.Adopt(holder, a.is.Claim, a.is.Grants)
		}
	}
}

func (b *addressBook) release(holder string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.book != nil {
		b.book.Release(holder)
		delete(b.unsettled, holder)
	}
}

// countOf is what the LoadBalancers of a namespace have together.
func (b *addressBook) countOf(namespace string) ipam.Count {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.book.CountOf(namespace)
}

// ranges are all that is external.
func (b *addressBook) ranges() []ipam.Range {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []ipam.Range
	for _, name := range slices.Sorted(maps.Keys(b.external)) {
		out = append(out, b.external[name]...)
	}
	return out
}

// poolReconciler takes changes of pools into the book and counts in their status.
type poolReconciler struct {
	client    client.Client
	addresses *addressBook
	changed   chan<- event.GenericEvent
	metrics   *metrics
	// nodes: Nodes can be read.
	nodes bool
}

// countPause lets a burst of LoadBalancers cost one count.
const countPause = 500 * time.Millisecond

func (r *poolReconciler) setUp(mgr ctrl.Manager) error {
	all := func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{{}} }
	once := afterBursts(allAtOnce)
	controller := ctrl.NewControllerManagedBy(mgr).Named("addresspool").
		Watches(&v1alpha1.AddressPool{}, handler.EnqueueRequestsFromMapFunc(all)).
		Watches(&v1alpha1.LoadBalancer{}, once).
		// For what a pool may not cover, and for the numbers that Prometheus is told.
		Watches(&v1alpha1.Tenant{}, once).
		// For what a pool may not cover.
		Watches(&v1alpha1.Addresses{}, once).
		Watches(&v1alpha1.Gateway{}, once, builder.WithPredicates(addressesDiffer)).
		Watches(&v1alpha1.BGPPeer{}, once, builder.WithPredicates(predicate.GenerationChangedPredicate{}))
	if r.nodes {
		controller = controller.Watches(&corev1.Node{}, once, builder.WithPredicates(addressesDiffer))
	}
	return controller.Complete(r)
}

// allAtOnce is the one request of a reconciler that looks at all objects together.
func allAtOnce(client.Object) reconcile.Request { return reconcile.Request{} }

// afterBursts asks for what an object concerns a little after it has changed.
func afterBursts(of func(client.Object) reconcile.Request) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { q.AddAfter(of(e.Object), countPause) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { q.AddAfter(of(e.ObjectNew), countPause) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { q.AddAfter(of(e.Object), countPause) },
	}
}

// Reconcile looks at all pools at once: whether one overlaps another is no property of one alone.
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
		default: // told already, and not yet heard
		}
	}
	var errs []error
	for i := range list.Items {
		errs = append(errs, r.count(ctx, &list.Items[i]))
	}
	result := reconcile.Result{}
	if !next.IsZero() {
		result.RequeueAfter = max(time.Until(next), time.Millisecond)
	}
	return unlessConflict(ctx, result, errors.Join(append(errs, r.tell(ctx, list.Items))...))
}

// tell brings the numbers for Prometheus up to date.
func (r *poolReconciler) tell(ctx context.Context, pools []v1alpha1.AddressPool) error {
	var lbs v1alpha1.LoadBalancerList
	var tenants v1alpha1.TenantList
	if err := errors.Join(r.client.List(ctx, &lbs, client.UnsafeDisableDeepCopy), r.client.List(ctx, &tenants, client.UnsafeDisableDeepCopy)); err != nil {
		return err
	}
	r.metrics.show(pools, lbs.Items, tenants.Items)
	return nil
}

func (r *poolReconciler) count(ctx context.Context, pool *v1alpha1.AddressPool) error {
	before := pool.Status.DeepCopy()
	r.addresses.mu.Lock()
	four, six := r.addresses.book.Usage(pool.Name, ipam.IPv4), r.addresses.book.Usage(pool.Name, ipam.IPv6)
	reserved := r.addresses.book.Reserved(pool.Name)
	pool.Status.Addresses = nil
	for _, external := range r.addresses.external[pool.Name] {
		pool.Status.Addresses = append(pool.Status.Addresses, external.String())
	}
	condition := r.addresses.readiness(pool.Name)
	r.addresses.mu.Unlock()
	pool.Status.Reserved = onRecord(reserved)
	pool.Status.IPv4 = &v1alpha1.AddressCount{Used: four.Used, Free: four.Free.String()}
	pool.Status.IPv6 = &v1alpha1.AddressCount{Used: six.Used, Free: six.Free.String()}
	condition.ObservedGeneration = pool.Generation
	plain.SetCondition(&pool.Status.Conditions, condition)
	if equality.Semantic.DeepEqual(before, &pool.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.client.Status().Update(ctx, pool))
}

// readiness is the condition Ready of a pool. mu is held.
func (b *addressBook) readiness(pool string) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "addresses can be given"}
	if skipped := b.skipped[pool]; len(skipped) > 0 {
		c.Message += ", but none of " + phrase.Few(skipped, ", ")
	}
	if problem, bad := b.bad[pool]; bad {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, problem.Reason, problem.Message
	}
	return c
}

// addressesHandler wakes up a tenant's LoadBalancers only when its Addresses come, go, or hold what may be refused: a
// node that joins is no LoadBalancer's change.
func (r *loadBalancerReconciler) addressesHandler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	wake := func(ctx context.Context, o client.Object, q queue) {
		for _, request := range r.inNamespace(ctx, o.GetNamespace()) {
			q.Add(request)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { wake(ctx, e.Object, q) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { wake(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
			before, after := e.ObjectOld.(*v1alpha1.Addresses), e.ObjectNew.(*v1alpha1.Addresses)
			if !reflect.DeepEqual(r.refusedIn(ctx, before), r.refusedIn(ctx, after)) {
				wake(ctx, after, q)
			}
		},
	}
}

// listVerdict is what of an Addresses object cannot be used, and of which families the other addresses are.
type listVerdict struct {
	problems []translate.Problem
	families []ipam.Family
}

func (r *loadBalancerReconciler) refusedIn(ctx context.Context, a *v1alpha1.Addresses) (out listVerdict) {
	tenant, err := r.tenantOf(ctx, a.Namespace)
	if err != nil || tenant == nil {
		return out
	}
	// What cannot be looked at is refused as before; the reconciler comes upon the error, too.
	_ = r.fences.with(ctx, func(fence translate.Fence) {
		out.problems, out.families = translate.JudgeAddresses(convert.Addresses(a), *tenant, fence)
	})
	return out
}
