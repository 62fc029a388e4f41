package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"kubelb.k8c.io/api/faults"
	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
)

// loadBalancerReconciler allocates addresses and writes all of LoadBalancer status.
type loadBalancerReconciler struct {
	client client.Client
	events events.EventRecorder
	// faults holds the LoadBalancers with a fault that an event has reported.
	faults faults.Tracker
	// reader asks the API server itself; namespace is where the gateways' Leases are.
	reader    client.Reader
	namespace string
	// fences say what may be a target; targetsChanged is told of namespaces in which that differs from before.
	fences         *fences
	targetsChanged chan event.GenericEvent
	addresses      *addressBook
	// waiting remembers which LoadBalancers wait for what.
	waiting waiting
	pace    *pace
	// presence tells which gateways are not heard of; gatewaysSilent is told when others are than before.
	presence       *presence
	gatewaysSilent chan event.GenericEvent
	// poolsChanged is told that there may be an address for those that wait, after the book knows of it.
	poolsChanged chan event.GenericEvent
	metrics      *metrics
}

// setUp lists what wakes a LoadBalancer up. Pools wake up only those that wait, and so do gateways, but for those that they fail, and those whose
// addresses another host has.
func (r *loadBalancerReconciler) setUp(mgr ctrl.Manager) error {
	gateways := func(ctx context.Context, o client.Object) []reconcile.Request {
		g := o.(*v1alpha1.Gateway)
		return slices.Concat(r.waiting.taken(g), failing(g), r.conflicting(ctx, g), r.maybeFailing(ctx, g))
	}
	pools := func(context.Context, client.Object) []reconcile.Request { return r.waiting.addresses() }
	return ctrl.NewControllerManagedBy(mgr).Named("loadbalancer").
		For(&v1alpha1.LoadBalancer{}).
		Watches(&v1alpha1.Gateway{}, handler.EnqueueRequestsFromMapFunc(gateways)).
		Watches(&v1alpha1.Gateway{}, r.whereAnnouncedElsewhere(gatewayMatters)).
		Watches(&v1alpha1.AddressPool{}, r.whereAnnouncedElsewhere(poolMatters)).
		WatchesRawSource(source.Channel(r.gatewaysSilent, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
			return r.inNamespace(ctx, "")
		}))).
		WatchesRawSource(source.Channel(r.poolsChanged, handler.EnqueueRequestsFromMapFunc(pools))).
		WatchesRawSource(source.Channel(r.targetsChanged, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			if o.GetName() != "" {
				return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(o)}}
			}
			return r.inNamespace(ctx, o.GetNamespace())
		}))).
		Watches(&v1alpha1.Addresses{}, r.addressesHandler()).
		Watches(&v1alpha1.Tenant{}, handler.EnqueueRequestsFromMapFunc(r.ofTenant), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		// The allocation is one book behind a lock; workers overlap while they wait for the API server.
		WithOptions(controller.Options{MaxConcurrentReconciles: 8, NewQueue: inTurns}).
		Complete(r)
}

func (r *loadBalancerReconciler) inNamespace(ctx context.Context, namespace string) []reconcile.Request {
	var lbs v1alpha1.LoadBalancerList
	if err := r.client.List(ctx, &lbs, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil
	}
	out := make([]reconcile.Request, len(lbs.Items))
	for i := range lbs.Items {
		out[i].NamespacedName = client.ObjectKeyFromObject(&lbs.Items[i])
	}
	return out
}

// conflicting are those with an address of which the gateway says that another host has it. Of a change of the gateway those of before are
// asked for, too.
func (r *loadBalancerReconciler) conflicting(ctx context.Context, g *v1alpha1.Gateway) (out []reconcile.Request) {
	if len(g.Status.Conflicts) == 0 {
		return nil
	}
	var lbs v1alpha1.LoadBalancerList
	if err := r.client.List(ctx, &lbs, client.UnsafeDisableDeepCopy); err != nil {
		return nil
	}
	for i := range lbs.Items {
		if slices.ContainsFunc(lbs.Items[i].Status.Addresses, func(a v1alpha1.AllocatedAddress) bool { return claimed(g, a.Address) }) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&lbs.Items[i])})
		}
	}
	return out
}

// maybeFailing requests the LoadBalancers of namespaces of which the gateway does not name all failing or refused LoadBalancers.
func (r *loadBalancerReconciler) maybeFailing(ctx context.Context, g *v1alpha1.Gateway) (out []reconcile.Request) {
	unlisted := g.Status.Unlisted
	if g.Status.Tries != nil {
		unlisted = slices.Concat(unlisted, g.Status.Tries.Unlisted)
	}
	if slices.Contains(unlisted, v1alpha1.AllNamespaces) {
		return r.inNamespace(ctx, "")
	}
	for _, namespace := range unlisted {
		out = append(out, r.inNamespace(ctx, namespace)...)
	}
	return out
}

func (r *loadBalancerReconciler) ofTenant(ctx context.Context, o client.Object) []reconcile.Request {
	return r.inNamespace(ctx, v1alpha1.TenantNamespacePrefix+o.GetName())
}

// Reconcile implements reconcile.Reconciler.
func (r *loadBalancerReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := r.reconcile(ctx, req)
	return unlessConflict(ctx, result, err)
}

// reconcile goes from acceptance over allocation to readiness, and writes what it found in one status update.
func (r *loadBalancerReconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.addresses.load(ctx); err != nil {
		return reconcile.Result{}, err
	}
	var lb v1alpha1.LoadBalancer
	err := r.client.Get(ctx, req.NamespacedName, &lb)
	if apierrors.IsNotFound(err) {
		r.forget(req.NamespacedName)
		r.freed()
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if lb.DeletionTimestamp != nil {
		return r.cleanUp(ctx, &lb)
	}
	if !controllerutil.ContainsFinalizer(&lb, v1alpha1.CleanupFinalizer) {
		// What that triggers comes back here.
		return reconcile.Result{}, r.rewrite(ctx, req.NamespacedName, func(lb *v1alpha1.LoadBalancer) bool {
			return lb.DeletionTimestamp == nil && controllerutil.AddFinalizer(lb, v1alpha1.CleanupFinalizer)
		})
	}
	allocated, again, err := r.sync(ctx, &lb)
	if err != nil || !allocated.freed {
		return reconcile.Result{RequeueAfter: again}, err
	}
	return r.letGo(ctx, &lb, allocated)
}

// rewrite changes the metadata of a LoadBalancer as it is at the API server: the cache has not all of it.
func (r *loadBalancerReconciler) rewrite(ctx context.Context, key client.ObjectKey, change func(*v1alpha1.LoadBalancer) bool) error {
	var lb v1alpha1.LoadBalancer
	if err := r.reader.Get(ctx, key, &lb); err != nil {
		return client.IgnoreNotFound(err)
	}
	before := lb.DeepCopy()
	if !change(&lb) {
		return nil
	}
	return client.IgnoreNotFound(patch(ctx, r.client, &lb, before))
}

// patch writes what differs from before, if the object is still what was read. Fields that this release does not know stay, and a policy allows the
// manager's account no other change of a spec.
func patch(ctx context.Context, c client.Client, o, before client.Object) error {
	return c.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// sync computes the status anew. What is on record before gateways may use it is written before anything else is said. again is after how long
// there is something to write, if that waits.
func (r *loadBalancerReconciler) sync(ctx context.Context, lb *v1alpha1.LoadBalancer) (a allocation, again time.Duration, err error) {
	before := lb.DeepCopy()
	c := conditions{lb: lb}
	wish, limits, problems, err := r.check(ctx, lb)
	if err != nil {
		return a, 0, err
	}
	key := client.ObjectKeyFromObject(lb)
	refused, isRefused := translate.Refused(problems)
	if isRefused {
		c.set(v1alpha1.ConditionAccepted, false, refused.Reason, refused.Message)
	} else {
		c.accept(problems)
	}
	a = r.allocate(lb, wish, limits, isRefused, &c)
	if len(lb.Status.Addresses) > 0 {
		lb.Status.Settings = convert.Settings(lb)
	}
	lb.Status.Summary = summaryOf(lb)
	r.waiting.forAddress(key, !c.isTrue(v1alpha1.ConditionAddressAllocated) && !isRefused)
	addressesChange := !equality.Semantic.DeepEqual(before.Status.Addresses, lb.Status.Addresses)
	if addressesChange {
		c.pending()
	}
	if addressesChange || !equality.Semantic.DeepEqual(before.Status.AdmittedPorts, lb.Status.AdmittedPorts) {
		return a, 0, r.write(ctx, before, lb) // and the change brings it back here
	}
	if err := r.observe(ctx, lb, isRefused, &c); err != nil {
		return a, 0, err
	}
	if again = r.postpone(before, lb, !isRefused && !c.settled()); again > 0 {
		return a, again, nil
	}
	return a, 0, r.write(ctx, before, lb)
}

// postpone is for how long it is not written what is to be said. more tells whether gateways have yet to say something.
func (r *loadBalancerReconciler) postpone(before, lb *v1alpha1.LoadBalancer, more bool) time.Duration {
	key := client.ObjectKeyFromObject(lb)
	switch {
	case equality.Semantic.DeepEqual(before.Status, lb.Status):
		r.pace.settled(key)
		return 0
	case !restates(before.Status, lb.Status):
		return 0
	}
	return r.pace.wait(key, time.Now(), more)
}

// check translates the LoadBalancer as every gateway does, to tell its problems, and tells its tenant's limits.
func (r *loadBalancerReconciler) check(ctx context.Context, lb *v1alpha1.LoadBalancer) (translate.LoadBalancer, ipam.Limits, []translate.Problem, error) {
	converted := convert.LoadBalancer(lb)
	var limits ipam.Limits
	tenant, err := r.tenantOf(ctx, lb.Namespace)
	if err != nil {
		return converted, limits, nil, err
	}
	if tenant != nil {
		limits = tenant.Limits
	}
	var addresses *translate.Addresses
	if converted.Reference != nil {
		var object v1alpha1.Addresses
		err := r.client.Get(ctx, client.ObjectKey{Namespace: lb.Namespace, Name: converted.Reference.Name}, &object)
		if client.IgnoreNotFound(err) != nil {
			return converted, limits, nil, err
		}
		if err == nil {
			a := convert.Addresses(&object)
			addresses = &a
		}
	}
	var problems []translate.Problem
	err = r.fences.with(ctx, func(fence translate.Fence) { problems = translate.Check(&converted, tenant, addresses, fence) })
	return converted, limits, problems, err
}

func (r *loadBalancerReconciler) tenantOf(ctx context.Context, namespace string) (*translate.Tenant, error) {
	name, ok := translate.TenantOf(namespace)
	if !ok {
		return nil, nil
	}
	var tenant v1alpha1.Tenant
	err := r.client.Get(ctx, client.ObjectKey{Name: name}, &tenant)
	if err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	t := convert.Tenant(&tenant)
	return &t, nil
}

// allocate brings what is on record to the wish.
func (r *loadBalancerReconciler) allocate(lb *v1alpha1.LoadBalancer, wish translate.LoadBalancer, limits ipam.Limits, refused bool, c *conditions) allocation {
	a := r.addresses.allocate(wish, convert.Grants(lb), limits, refused)
	lb.Status.Addresses, lb.Status.AdmittedPorts = nil, nil
	for _, g := range a.grants {
		lb.Status.Addresses = append(lb.Status.Addresses, v1alpha1.AllocatedAddress{Address: g.Address.String(), Pool: g.Pool})
	}
	if a.admitted != nil {
		ports := []v1alpha1.AdmittedPort{}
		for _, p := range *a.admitted {
			ports = append(ports, v1alpha1.AdmittedPort{Port: p.Number, Protocol: corev1.Protocol(p.Protocol)})
		}
		lb.Status.AdmittedPorts = &ports
	}
	switch {
	case a.refusal != nil:
		c.set(v1alpha1.ConditionAddressAllocated, false, a.refusal.Reason, a.refusal.Message)
	case len(a.grants) == 0:
		c.set(v1alpha1.ConditionAddressAllocated, false, reasonNotAccepted, "no address is allocated before the LoadBalancer is accepted")
	default:
		c.set(v1alpha1.ConditionAddressAllocated, true, reasonAllocated, "status.addresses holds the allocation")
	}
	return a
}

// observe asks what gateways have made of the LoadBalancer, as it stands in the API now.
func (r *loadBalancerReconciler) observe(ctx context.Context, lb *v1alpha1.LoadBalancer, refused bool, c *conditions) error {
	// First to wait, then to look: what a gateway says in between is not missed.
	r.waiting.forGateway(lb, true)
	var gateways v1alpha1.GatewayList
	if err := r.client.List(ctx, &gateways); err != nil {
		return err
	}
	if refused || len(lb.Status.Addresses) == 0 {
		c.notServed()
		if lb.Spec.Type != corev1.ServiceTypeLoadBalancer {
			lb.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		}
		r.waiting.forGateway(lb, false)
		return nil
	}
	var pools v1alpha1.AddressPoolList
	if err := r.client.List(ctx, &pools); err != nil {
		return err
	}
	silent, err := r.presence.silent(ctx)
	if err != nil {
		return err
	}
	view := viewOf(gateways.Items, silent, pools.Items, lb)
	// While gateways take a newer generation, what was true of the one before stays, with that generation's number. Where some refuse it,
	// others that have taken this generation still have it while they look at a version that differs in status only.
	switch {
	case view.applied:
		c.set(v1alpha1.ConditionProgrammed, true, reasonProgrammed, "a gateway's dataplane holds it")
	case view.failure != "" && !(view.undecided && c.holds(v1alpha1.ConditionProgrammed)):
		c.set(v1alpha1.ConditionProgrammed, false, reasonDataplaneRefused, view.failure)
	case len(view.maybeRefused) > 0 && !(view.undecided && c.holds(v1alpha1.ConditionProgrammed)):
		c.setStatus(v1alpha1.ConditionProgrammed, metav1.ConditionUnknown, reasonMaybeRefused, "nobody knows whether a dataplane holds it: "+phrase.Few(view.maybeRefused, "; "))
	case view.lost():
		c.setStatus(v1alpha1.ConditionProgrammed, metav1.ConditionUnknown, reasonGatewaySilent, "nobody knows whether a dataplane holds it: "+phrase.Few(slices.Concat(view.unheard, view.problems), "; "))
	case !c.isTrue(v1alpha1.ConditionProgrammed) || view.gateways == 0:
		c.set(v1alpha1.ConditionProgrammed, false, view.waitReason(), view.waitMessage())
	}
	switch {
	case view.announced && c.isTrue(v1alpha1.ConditionProgrammed):
		reason, message := view.announcement()
		c.set(v1alpha1.ConditionAnnounced, true, reason, message)
	case view.unknownReason != "":
		c.setStatus(v1alpha1.ConditionAnnounced, metav1.ConditionUnknown, view.unknownReason, view.silence())
	case view.silenced:
		// Of this nothing stays true: nobody hears of an address, and no gateway is about to change that.
		c.set(v1alpha1.ConditionAnnounced, false, reasonNotAnnounced, view.silence())
	case !c.isTrue(v1alpha1.ConditionAnnounced):
		c.set(v1alpha1.ConditionAnnounced, false, reasonWaitingForAnnouncement, view.silence())
	}
	if c.isTrue(v1alpha1.ConditionProgrammed) && c.isTrue(v1alpha1.ConditionAnnounced) {
		lb.Status.LoadBalancer = ingressOf(lb)
	}
	c.served(view.unserved())
	c.ready()
	if c.settled() {
		r.waiting.forGateway(lb, false)
	}
	return nil
}

// summaryOf is what tables show.
func summaryOf(lb *v1alpha1.LoadBalancer) *v1alpha1.LoadBalancerSummary {
	addresses, ports := make([]string, len(lb.Status.Addresses)), make([]string, len(lb.Spec.Ports))
	for i, a := range lb.Status.Addresses {
		addresses[i] = a.Address
	}
	for i, p := range lb.Spec.Ports {
		ports[i] = fmt.Sprintf("%d/%s", p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP))
	}
	return &v1alpha1.LoadBalancerSummary{Addresses: strings.Join(addresses, ","), Ports: strings.Join(ports, ",")}
}

// ingressOf is what the CCM copies: the addresses, in the order of the families.
func ingressOf(lb *v1alpha1.LoadBalancer) corev1.LoadBalancerStatus {
	mode := ipModeOf(lb)
	var out corev1.LoadBalancerStatus
	for _, a := range lb.Status.Addresses {
		out.Ingress = append(out.Ingress, corev1.LoadBalancerIngress{IP: a.Address, IPMode: &mode})
	}
	return out
}

// ipModeOf tells who serves the tenant's own nodes and pods (KEP-1860): their kube-proxy, which takes the addresses for the Service's own (VIP), or a
// gateway (Proxy). With direct kube-proxy has to know the addresses, since packets come to it as clients sent them. With transparent a node would answer
// another one past the gateway, which alone can undo its translation. With the PROXY protocol pods wait for the gateway's header.
func ipModeOf(lb *v1alpha1.LoadBalancer) corev1.LoadBalancerIPMode {
	asked := convert.WithoutTargets(lb)
	if asked.Forwarding == model.Direct.String() || asked.Forwarding == model.Transparent.String() && asked.ProxyProtocol == "" {
		return corev1.LoadBalancerIPModeVIP
	}
	return corev1.LoadBalancerIPModeProxy
}

// worthAnEvent tells whether a condition says of something that is wrong, and does not pass by itself.
func worthAnEvent(c *metav1.Condition) bool {
	switch c.Reason {
	case reasonNotAccepted, reasonWaitingForGateway, reasonWaitingForAnnouncement:
		return false
	case v1alpha1.ReasonAddressConflict:
		return true
	}
	return c.Status != metav1.ConditionTrue
}

// write updates the status if it differs, and emits an event for a new fault or a recovery.
func (r *loadBalancerReconciler) write(ctx context.Context, before, lb *v1alpha1.LoadBalancer) error {
	if equality.Semantic.DeepEqual(before.Status, lb.Status) {
		return nil
	}
	if err := r.client.Status().Update(ctx, lb); err != nil {
		return client.IgnoreNotFound(err)
	}
	r.pace.wrote(client.ObjectKeyFromObject(lb), time.Now())
	if len(before.Status.LoadBalancer.Ingress) == 0 && len(lb.Status.LoadBalancer.Ingress) > 0 {
		r.metrics.ready.Observe(time.Since(lb.CreationTimestamp.Time).Seconds())
	}
	r.emitEvent(before, lb)
	return nil
}

// emitEvent emits a Warning event for the first condition with a new fault, or a Normal event if the LoadBalancer has become Ready after a fault.
func (r *loadBalancerReconciler) emitEvent(before, lb *v1alpha1.LoadBalancer) {
	key := client.ObjectKeyFromObject(lb)
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionAddressAllocated, v1alpha1.ConditionProgrammed, v1alpha1.ConditionAnnounced, v1alpha1.ConditionServed} {
		was, is := meta.FindStatusCondition(before.Status.Conditions, kind), meta.FindStatusCondition(lb.Status.Conditions, kind)
		if is != nil && worthAnEvent(is) && (was == nil || was.Message != is.Message) {
			r.faults.Add(key)
			r.events.Eventf(lb, nil, corev1.EventTypeWarning, is.Reason, "Sync", "%s", plain.Note(is.Message))
			return
		}
	}
	was, is := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.ConditionReady), meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
	if is == nil || is.Status != metav1.ConditionTrue || worthAnEvent(is) {
		return
	}
	if reported := r.faults.Remove(key); reported || was != nil && worthAnEvent(was) {
		r.events.Eventf(lb, nil, corev1.EventTypeNormal, faults.RecoveryReason, "Sync", "%s", plain.Note(faults.RecoveryMessage(is.Message)))
	}
}
