package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/hubhosts"
)

// fences are what tenants may not target, as it was seen last.
type fences struct {
	client client.Client
	// addresses tell which are external.
	addresses *addressBook
	// forbidden are the operator's networks.
	forbidden []netip.Prefix
	// nodes: Nodes can be read.
	nodes bool

	mu sync.Mutex // guards those below, which are replaced and never changed
	// claims are nil before the first look.
	claims *translate.Claims
	hosts  map[netip.Addr]string
}

// usedByHosts are addresses of the management cluster's hosts, and of routers.
func (f *fences) usedByHosts(ctx context.Context) (translate.Used, error) {
	used, err := f.hostsNow(ctx)
	if err != nil {
		return nil, err
	}
	var peers v1alpha1.BGPPeerList
	if err := f.client.List(ctx, &peers, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("look at which routers there are: %w", err)
	}
	for i := range peers.Items {
		for _, a := range hubhosts.Parsed([]string{peers.Items[i].Spec.Address}) {
			used[a] = "the router of BGPPeer " + peers.Items[i].Name
		}
	}
	return used, nil
}

// usedByTargets are addresses that tenants target, while the ranges are external.
func (f *fences) usedByTargets(ctx context.Context, external []ipam.Range) (translate.Used, error) {
	s, err := f.look(ctx)
	if err != nil {
		return nil, err
	}
	lists, err := f.lists(ctx, s)
	if err != nil {
		return nil, err
	}
	return translate.UsedByTargets(lists, s.tenants, translate.Fence{Forbidden: f.forbidden, VIPs: external, Hosts: s.hosts, Claims: s.claims}), nil
}

// lists are all targets that tenants name: in Addresses, and in LoadBalancers themselves.
func (f *fences) lists(ctx context.Context, s seen) ([]translate.Addresses, error) {
	var lbs v1alpha1.LoadBalancerList
	if err := f.client.List(ctx, &lbs, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("look at what tenants target: %w", err)
	}
	lists := slices.Clone(s.addresses)
	for i := range lbs.Items {
		if own := convert.LoadBalancer(&lbs.Items[i]).OwnTargets(); len(own.List) > 0 {
			lists = append(lists, own)
		}
	}
	return lists, nil
}

// of returns the fence as of the last look, which is now if there was none.
func (f *fences) of(ctx context.Context) (translate.Fence, error) {
	f.mu.Lock()
	looked := f.claims != nil
	f.mu.Unlock()
	if !looked {
		if _, err := f.look(ctx); err != nil {
			return translate.Fence{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return translate.Fence{Forbidden: f.forbidden, VIPs: f.addresses.ranges(), Hosts: f.hosts, Claims: f.claims}, nil
}

// seen is what a look at the management cluster found.
type seen struct {
	tenants   map[string]translate.Tenant
	addresses []translate.Addresses
	claims    *translate.Claims
	hosts     map[netip.Addr]string
}

// hostsNow reads which hosts the management cluster has, gateways and Nodes, and tells what each address is called.
func (f *fences) hostsNow(ctx context.Context) (map[netip.Addr]string, error) {
	var gateways v1alpha1.GatewayList
	var nodes corev1.NodeList
	err := f.client.List(ctx, &gateways, client.UnsafeDisableDeepCopy)
	if f.nodes {
		err = errors.Join(err, f.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy))
	}
	if err != nil {
		return nil, fmt.Errorf("look at which hosts there are: %w", err)
	}
	hosts := map[netip.Addr]string{}
	for i := range nodes.Items {
		for _, a := range hubhosts.OfNode(&nodes.Items[i]) {
			hosts[a] = "Node " + nodes.Items[i].Name
		}
	}
	for i := range gateways.Items {
		for _, a := range hubhosts.Parsed(gateways.Items[i].Status.HostAddresses) {
			hosts[a] = "gateway " + gateways.Items[i].Name
		}
	}
	return hosts, nil
}

// look reads who lists which nodes, and which hosts there are.
func (f *fences) look(ctx context.Context) (seen, error) {
	var tenants v1alpha1.TenantList
	var addresses v1alpha1.AddressesList
	if err := errors.Join(f.client.List(ctx, &tenants, client.UnsafeDisableDeepCopy), f.client.List(ctx, &addresses, client.UnsafeDisableDeepCopy)); err != nil {
		return seen{}, fmt.Errorf("look at what tenants may target: %w", err)
	}
	hosts, err := f.hostsNow(ctx)
	if err != nil {
		return seen{}, err
	}
	s := seen{tenants: map[string]translate.Tenant{}, claims: translate.NewClaims(), hosts: hosts}
	for i := range tenants.Items {
		t := convert.Tenant(&tenants.Items[i])
		s.tenants[t.Namespace()] = t
		s.claims.SetTenant(t)
	}
	for i := range addresses.Items {
		a := convert.Addresses(&addresses.Items[i])
		s.addresses = append(s.addresses, a)
		s.claims.SetAddresses(a)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims, f.hosts = s.claims, s.hosts
	return s, nil
}

// targetReconciler keeps the fences up to date, has on record which nodes are whose where only that tells, and wakes up LoadBalancers of which
// another target is refused than before.
type targetReconciler struct {
	client  client.Client
	fences  *fences
	changed chan<- event.GenericEvent
	// refused is what was refused at the last look, by namespace.
	refused map[string]string
}

func (r *targetReconciler) setUp(mgr ctrl.Manager) error {
	once := afterBursts(allAtOnce)
	controller := ctrl.NewControllerManagedBy(mgr).Named("targets").
		Watches(&v1alpha1.Tenant{}, once, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Addresses{}, once).
		Watches(&v1alpha1.Gateway{}, once, builder.WithPredicates(addressesDiffer)).
		Watches(&v1alpha1.LoadBalancer{}, once, builder.WithPredicates(ownTargetsDiffer))
	if r.fences.nodes {
		controller = controller.Watches(&corev1.Node{}, once, builder.WithPredicates(addressesDiffer))
	}
	return controller.Complete(r)
}

// addressesDiffer lets through what changes the addresses of a gateway or a Node.
var addressesDiffer = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return !slices.Equal(hostAddresses(e.ObjectOld), hostAddresses(e.ObjectNew))
}}

// ownTargetsDiffer lets through what changes the targets that stand in a LoadBalancer itself. Most LoadBalancers have none, and no change of one
// has all tenants' targets looked at.
var ownTargetsDiffer = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return len(ownTargets(e.Object)) > 0 },
	DeleteFunc: func(e event.DeleteEvent) bool { return len(ownTargets(e.Object)) > 0 },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() && !slices.Equal(ownTargets(e.ObjectOld), ownTargets(e.ObjectNew))
	},
}

func ownTargets(o client.Object) []translate.Address {
	return convert.LoadBalancer(o.(*v1alpha1.LoadBalancer)).OwnTargets().List
}

func hostAddresses(o client.Object) []netip.Addr {
	switch host := o.(type) {
	case *v1alpha1.Gateway:
		return hubhosts.Parsed(host.Status.HostAddresses)
	case *corev1.Node:
		return hubhosts.OfNode(host)
	}
	return nil
}

// Reconcile looks at all at once: whose an address is depends on what others list.
func (r *targetReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	s, err := r.fences.look(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	var errs []error
	for _, a := range s.addresses {
		held := slices.DeleteFunc(s.claims.ToHold(a), func(address netip.Addr) bool { return s.hosts[address] != "" })
		errs = append(errs, r.hold(ctx, a, held))
	}
	return unlessConflict(ctx, reconcile.Result{}, errors.Join(append(errs, r.wake(ctx, s))...))
}

// hold has on record what an object's tenant was the first to list.
func (r *targetReconciler) hold(ctx context.Context, a translate.Addresses, held []netip.Addr) error {
	if slices.Equal(a.Held, held) {
		return nil
	}
	var object v1alpha1.Addresses
	if err := r.client.Get(ctx, client.ObjectKey{Namespace: a.Namespace, Name: a.Name}, &object); err != nil {
		return client.IgnoreNotFound(err)
	}
	object.Status.Held = nil
	for _, address := range held {
		object.Status.Held = append(object.Status.Held, address.String())
	}
	return client.IgnoreNotFound(r.client.Status().Update(ctx, &object))
}

// wake tells of namespaces in which something else is refused than at the last look. At the first one all are looked at anyway.
func (r *targetReconciler) wake(ctx context.Context, s seen) error {
	refused, err := r.refusedNow(ctx, s)
	if err != nil {
		return err
	}
	before := r.refused
	if r.refused = refused; before == nil {
		return nil
	}
	for namespace := range s.tenants {
		if refused[namespace] == before[namespace] {
			continue
		}
		select {
		case r.changed <- event.GenericEvent{Object: &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: namespace}}}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// refusedNow says what is refused in each namespace, of what is listed for all LoadBalancers and of what single ones have.
func (r *targetReconciler) refusedNow(ctx context.Context, s seen) (map[string]string, error) {
	fence, err := r.fences.of(ctx)
	if err != nil {
		return nil, err
	}
	lists, err := r.fences.lists(ctx, s)
	if err != nil {
		return nil, err
	}
	// A cache has no order.
	slices.SortFunc(lists, func(a, b translate.Addresses) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	refused := map[string]string{}
	for _, list := range lists {
		if tenant, known := s.tenants[list.Namespace]; known {
			refused[list.Namespace] += fmt.Sprint(list.Name, translate.CheckAddresses(list, tenant, fence))
		}
	}
	return refused, nil
}
