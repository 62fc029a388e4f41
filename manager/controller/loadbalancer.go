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

// loadBalancerReconciler allocates addresses and writes the status of LoadBalancers.
type loadBalancerReconciler struct {
	client client.Client
	events events.EventRecorder
	// faults has the LoadBalancers with a fault that an event has reported.
	faults faults.Tracker
	// reader reads from the API server, without the cache. namespace is the namespace of the gateways' Leases.
	reader    client.Reader
	namespace string
	// filter decides which targets are allowed. targetsChanged gets the LoadBalancers and namespaces whose refused targets have changed.
	filter         *targetFilter
	targetsChanged chan event.GenericEvent
	addresses      *addressAllocator
	// waiting has the LoadBalancers that wait for a gateway or for an address.
	waiting  waiting
	throttle *statusThrottle
	// gateways knows which gateways are silent. gatewaysSilent gets an event when that changes.
	gateways       *gatewayMonitor
	gatewaysSilent chan event.GenericEvent
	// poolsChanged gets an event when LoadBalancers that wait may get an address.
	poolsChanged chan event.GenericEvent
	metrics      *metrics
}

// setUp adds the watches that reconcile LoadBalancers. A change of a Gateway or of the AddressPools reconciles only LoadBalancers that may be affected:
// those that wait, and for a Gateway also those that fail at it and those with an address conflict.
func (r *loadBalancerReconciler) setUp(mgr ctrl.Manager) error {
	gateways := func(ctx context.Context, o client.Object) []reconcile.Request {
		g := o.(*v1alpha1.Gateway)
		return slices.Concat(r.waiting.reported(g), failing(g), r.conflicting(ctx, g), r.possiblyFailing(ctx, g))
	}
	pools := func(context.Context, client.Object) []reconcile.Request { return r.waiting.waitingForAddress() }
	return ctrl.NewControllerManagedBy(mgr).Named("loadbalancer").
		For(&v1alpha1.LoadBalancer{}).
		Watches(&v1alpha1.Gateway{}, handler.EnqueueRequestsFromMapFunc(gateways)).
		Watches(&v1alpha1.Gateway{}, r.onAnnouncementChange(announcementChanges)).
		Watches(&v1alpha1.AddressPool{}, r.onAnnouncementChange(selectionChanges)).
		WatchesRawSource(source.Channel(r.gatewaysSilent, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
			return r.loadBalancersIn(ctx, "")
		}))).
		WatchesRawSource(source.Channel(r.poolsChanged, handler.EnqueueRequestsFromMapFunc(pools))).
		WatchesRawSource(source.Channel(r.targetsChanged, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			if o.GetName() != "" {
				return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(o)}}
			}
			return r.loadBalancersIn(ctx, o.GetNamespace())
		}))).
		Watches(&v1alpha1.Addresses{}, r.addressesHandler()).
		Watches(&v1alpha1.Tenant{}, handler.EnqueueRequestsFromMapFunc(r.loadBalancersOfTenant), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		// One lock guards the allocation. Workers overlap while they wait for the API server.
		WithOptions(controller.Options{MaxConcurrentReconciles: 8, NewQueue: newFairQueue}).
		Complete(r)
}

func (r *loadBalancerReconciler) loadBalancersIn(ctx context.Context, namespace string) []reconcile.Request {
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

// conflicting requests the LoadBalancers with an address that another host has, according to the gateway. controller-runtime calls it with the gateway
// before and after a change.
func (r *loadBalancerReconciler) conflicting(ctx context.Context, g *v1alpha1.Gateway) (out []reconcile.Request) {
	if len(g.Status.Conflicts) == 0 {
		return nil
	}
	var lbs v1alpha1.LoadBalancerList
	if err := r.client.List(ctx, &lbs, client.UnsafeDisableDeepCopy); err != nil {
		return nil
	}
	for i := range lbs.Items {
		if slices.ContainsFunc(lbs.Items[i].Status.Addresses, func(a v1alpha1.AllocatedAddress) bool { return hasConflict(g, a.Address) }) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&lbs.Items[i])})
		}
	}
	return out
}

// possiblyFailing requests the LoadBalancers of namespaces with more failing or refused LoadBalancers than the gateway lists.
func (r *loadBalancerReconciler) possiblyFailing(ctx context.Context, g *v1alpha1.Gateway) (out []reconcile.Request) {
	unlisted := g.Status.Unlisted
	if g.Status.Tries != nil {
		unlisted = slices.Concat(unlisted, g.Status.Tries.Unlisted)
	}
	if slices.Contains(unlisted, v1alpha1.AllNamespaces) {
		return r.loadBalancersIn(ctx, "")
	}
	for _, namespace := range unlisted {
		out = append(out, r.loadBalancersIn(ctx, namespace)...)
	}
	return out
}

func (r *loadBalancerReconciler) loadBalancersOfTenant(ctx context.Context, o client.Object) []reconcile.Request {
	return r.loadBalancersIn(ctx, v1alpha1.TenantNamespacePrefix+o.GetName())
}

// Reconcile implements reconcile.Reconciler.
func (r *loadBalancerReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := r.reconcile(ctx, req)
	return retryConflicts(ctx, result, err)
}

// reconcile checks the LoadBalancer, allocates its addresses, and writes the status in one update.
func (r *loadBalancerReconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := r.addresses.load(ctx); err != nil {
		return reconcile.Result{}, err
	}
	var lb v1alpha1.LoadBalancer
	err := r.client.Get(ctx, req.NamespacedName, &lb)
	if apierrors.IsNotFound(err) {
		r.remove(req.NamespacedName)
		r.requeueWaiting()
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if lb.DeletionTimestamp != nil {
		return r.cleanUp(ctx, &lb)
	}
	if !controllerutil.ContainsFinalizer(&lb, v1alpha1.CleanupFinalizer) {
		// The write triggers the next reconcile.
		return reconcile.Result{}, r.patchMetadata(ctx, req.NamespacedName, func(lb *v1alpha1.LoadBalancer) bool {
			return lb.DeletionTimestamp == nil && controllerutil.AddFinalizer(lb, v1alpha1.CleanupFinalizer)
		})
	}
	allocated, after, err := r.sync(ctx, &lb)
	if err != nil || !allocated.freed {
		return reconcile.Result{RequeueAfter: after}, err
	}
	return r.release(ctx, &lb, allocated)
}

// patchMetadata changes the metadata of a LoadBalancer. It reads the object from the API server: the cache does not have all of the metadata.
func (r *loadBalancerReconciler) patchMetadata(ctx context.Context, key client.ObjectKey, change func(*v1alpha1.LoadBalancer) bool) error {
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

// patch writes the difference to before if nobody has changed the object since it was read. Fields that this release does not know stay. A policy
// refuses changes of the spec by the manager's account.
func patch(ctx context.Context, c client.Client, o, before client.Object) error {
	return c.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// sync computes the status. It writes a changed allocation before the other parts of the status, since gateways serve what the allocation says. after
// is the delay of a postponed write, or 0.
func (r *loadBalancerReconciler) sync(ctx context.Context, lb *v1alpha1.LoadBalancer) (a allocation, after time.Duration, err error) {
	before := lb.DeepCopy()
	c := conditions{lb: lb}
	request, limits, problems, err := r.check(ctx, lb)
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
	a = r.allocate(lb, request, limits, isRefused, &c)
	if len(lb.Status.Addresses) > 0 {
		lb.Status.Settings = convert.Settings(lb)
	}
	lb.Status.Summary = summaryOf(lb)
	r.waiting.setForAddress(key, !c.isTrue(v1alpha1.ConditionAddressAllocated) && !isRefused)
	addressesChange := !equality.Semantic.DeepEqual(before.Status.Addresses, lb.Status.Addresses)
	if addressesChange {
		c.pending()
	}
	if addressesChange || !equality.Semantic.DeepEqual(before.Status.AdmittedPorts, lb.Status.AdmittedPorts) {
		return a, 0, r.write(ctx, before, lb) // the write triggers the next reconcile
	}
	if err := r.observe(ctx, lb, request, isRefused, &c); err != nil {
		return a, 0, err
	}
	if after = r.writeDelay(before, lb, !isRefused && !c.settled()); after > 0 {
		return a, after, nil
	}
	return a, 0, r.write(ctx, before, lb)
}

// writeDelay returns for how long the write of the status is postponed. pending: reports of gateways are still missing.
func (r *loadBalancerReconciler) writeDelay(before, lb *v1alpha1.LoadBalancer, pending bool) time.Duration {
	key := client.ObjectKeyFromObject(lb)
	switch {
	case equality.Semantic.DeepEqual(before.Status, lb.Status):
		r.throttle.clear(key)
		return 0
	case !differOnlyInGeneration(before.Status, lb.Status):
		return 0
	}
	return r.throttle.delay(key, time.Now(), pending)
}

// check translates the LoadBalancer as gateways do. It returns the request, the tenant's limits, and the problems.
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
	err = r.filter.with(ctx, func(filter translate.TargetFilter) { problems = translate.Check(&converted, tenant, addresses, filter) })
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

// allocate changes the allocation to the request.
func (r *loadBalancerReconciler) allocate(lb *v1alpha1.LoadBalancer, request translate.LoadBalancer, limits ipam.Limits, refused bool, c *conditions) allocation {
	a := r.addresses.allocate(request, convert.Allocations(lb), limits, refused)
	lb.Status.Addresses, lb.Status.AdmittedPorts = nil, nil
	for _, g := range a.addresses {
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
	case len(a.addresses) == 0:
		c.set(v1alpha1.ConditionAddressAllocated, false, reasonNotAccepted, "the LoadBalancer gets no address before it is accepted")
	default:
		c.set(v1alpha1.ConditionAddressAllocated, true, reasonAllocated, "the addresses are in status.addresses")
	}
	return a
}

// observe sets the conditions by what gateways report about the present version of the LoadBalancer.
func (r *loadBalancerReconciler) observe(ctx context.Context, lb *v1alpha1.LoadBalancer, request translate.LoadBalancer, refused bool, c *conditions) error {
	// Register before reading the Gateways, so that no report in between is missed.
	r.waiting.setForGateway(lb, true)
	var gateways v1alpha1.GatewayList
	if err := r.client.List(ctx, &gateways); err != nil {
		return err
	}
	if refused || len(lb.Status.Addresses) == 0 {
		c.notServed()
		if lb.Spec.Type != corev1.ServiceTypeLoadBalancer {
			lb.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		}
		r.waiting.setForGateway(lb, false)
		return nil
	}
	var pools v1alpha1.AddressPoolList
	if err := r.client.List(ctx, &pools); err != nil {
		return err
	}
	silent, err := r.gateways.silent(ctx)
	if err != nil {
		return err
	}
	view := viewOf(gateways.Items, silent, pools.Items, lb)
	// While gateways apply a new generation, the conditions keep the former generation and its number. If one gateway refuses this generation, others that
	// have applied it still hold it while they apply a version that differs only in its status.
	switch {
	case view.applied:
		c.set(v1alpha1.ConditionProgrammed, true, reasonProgrammed, "the dataplane of a gateway holds it")
	case view.failure != "" && !(view.undecided && c.holds(v1alpha1.ConditionProgrammed)):
		c.set(v1alpha1.ConditionProgrammed, false, reasonDataplaneRefused, view.failure)
	case len(view.maybeRefused) > 0 && !(view.undecided && c.holds(v1alpha1.ConditionProgrammed)):
		c.setStatus(v1alpha1.ConditionProgrammed, metav1.ConditionUnknown, reasonMaybeRefused, "it is not known whether a dataplane holds it: "+phrase.Few(view.maybeRefused, "; "))
	case view.isUnknown():
		c.setStatus(v1alpha1.ConditionProgrammed, metav1.ConditionUnknown, reasonGatewaySilent, "it is not known whether a dataplane holds it: "+phrase.Few(slices.Concat(view.silent, view.problems), "; "))
	case !c.isTrue(v1alpha1.ConditionProgrammed) || view.gateways == 0:
		c.set(v1alpha1.ConditionProgrammed, false, view.waitReason(), view.waitMessage())
	}
	switch {
	case view.announced && c.isTrue(v1alpha1.ConditionProgrammed):
		reason, message := view.announcement()
		c.set(v1alpha1.ConditionAnnounced, true, reason, message)
	case view.unknownReason != "":
		c.setStatus(v1alpha1.ConditionAnnounced, metav1.ConditionUnknown, view.unknownReason, view.unansweredMessage())
	case view.silenced:
		// The condition does not keep its former value: an address is announced to nobody, and no gateway is about to change that.
		c.set(v1alpha1.ConditionAnnounced, false, reasonNotAnnounced, view.unansweredMessage())
	case !c.isTrue(v1alpha1.ConditionAnnounced):
		c.set(v1alpha1.ConditionAnnounced, false, reasonWaitingForAnnouncement, view.unansweredMessage())
	}
	if c.isTrue(v1alpha1.ConditionProgrammed) && c.isTrue(v1alpha1.ConditionAnnounced) {
		lb.Status.LoadBalancer = ingressOf(lb, request)
	}
	c.served(view.unserved())
	c.ready()
	if c.settled() {
		r.waiting.setForGateway(lb, false)
	}
	return nil
}

// summaryOf returns status.summary, which kubectl get prints.
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

// ingressOf returns the addresses in the order of their families. The CCM copies them into the Service.
func ingressOf(lb *v1alpha1.LoadBalancer, request translate.LoadBalancer) corev1.LoadBalancerStatus {
	mode := ipModeOf(request)
	var out corev1.LoadBalancerStatus
	for _, a := range lb.Status.Addresses {
		out.Ingress = append(out.Ingress, corev1.LoadBalancerIngress{IP: a.Address, IPMode: &mode})
	}
	return out
}

// ipModeOf returns how the tenant's own nodes and pods reach the addresses (KEP-1860): by their kube-proxy (VIP), or by a gateway (Proxy). With mode
// direct, kube-proxy must know the addresses, since packets keep the destination that the client used. With mode transparent, a node would answer another
// node without the gateway, and only the gateway can undo its translation. With the PROXY protocol, pods wait for the gateway's header.
func ipModeOf(request translate.LoadBalancer) corev1.LoadBalancerIPMode {
	if request.Forwarding == model.Direct.String() || request.Forwarding == model.Transparent.String() && request.ProxyProtocol == "" {
		return corev1.LoadBalancerIPModeVIP
	}
	return corev1.LoadBalancerIPModeProxy
}

// isFault reports whether a condition reports a fault that does not pass by itself.
func isFault(c *metav1.Condition) bool {
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
	r.throttle.written(client.ObjectKeyFromObject(lb), time.Now())
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
		if is != nil && isFault(is) && (was == nil || was.Message != is.Message) {
			r.faults.Add(key)
			r.events.Eventf(lb, nil, corev1.EventTypeWarning, is.Reason, "Sync", "%s", plain.Note(is.Message))
			return
		}
	}
	was, is := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.ConditionReady), meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
	if is == nil || is.Status != metav1.ConditionTrue || isFault(is) {
		return
	}
	if reported := r.faults.Remove(key); reported || was != nil && isFault(was) {
		r.events.Eventf(lb, nil, corev1.EventTypeNormal, faults.RecoveryReason, "Sync", "%s", plain.Note(faults.RecoveryMessage(is.Message)))
	}
}
