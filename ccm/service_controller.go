package ccm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"kubelb.k8c.io/api/faults"
	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/convert"
	"kubelb.k8c.io/ccm/foreign"
	"kubelb.k8c.io/core/translate"
)

const (
	cleanupFinalizer = v1alpha1.ServiceFinalizer
	// conditionReady is the one condition that this controller keeps on a Service. It also says that the Service was ours.
	conditionReady = v1alpha1.ServiceCondition
)

// legacyFinalizers are those of KubeLB's own CCM, the second of its first releases.
func legacyFinalizers() []string { return []string{foreign.Finalizer, "kubelb.k8c.io/lb-finalizer"} }

// Event reasons, as Kubernetes' service controller names them.
const (
	eventEnsuring    = "EnsuringLoadBalancer"
	eventEnsured     = "EnsuredLoadBalancer"
	eventUpdated     = "UpdatedLoadBalancer"
	eventDeleting    = "DeletingLoadBalancer"
	eventDeleted     = "DeletedLoadBalancer"
	eventSyncFailed  = "SyncLoadBalancerFailed"
	eventUnavailable = "UnAvailableLoadBalancer"
)

// serviceReconciler keeps one LoadBalancer on the hub for each Service that is ours.
type serviceReconciler struct {
	tenant client.Client
	hub    client.Client
	events events.EventRecorder
	// faults holds the Services with a fault that an event has reported.
	faults faults.Tracker
	config Config
	nodes  *nodesProblem
	away   *away
	lag    lag
}

// setUp lists what wakes a Service up: itself, its EndpointSlices and the nodes where its policy is Local, its LoadBalancer.
func (r *serviceReconciler) setUp(mgr ctrl.Manager, hub cluster.Cluster) error {
	return ctrl.NewControllerManagedBy(mgr).Named("service").
		For(&corev1.Service{}).
		Watches(&discoveryv1.EndpointSlice{}, handler.EnqueueRequestsFromMapFunc(serviceOfSlice)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.localServices), withPredicate(nodeMatters)).
		WatchesRawSource(source.Kind(hub.GetCache(), &v1alpha1.LoadBalancer{}, handler.TypedEnqueueRequestsFromMapFunc(serviceOfLoadBalancer))).
		WatchesRawSource(source.Channel(r.nodes.changed, handler.EnqueueRequestsFromMapFunc(r.servicesOfAllNodes))).
		WatchesRawSource(source.Channel(r.away.changed, handler.EnqueueRequestsFromMapFunc(r.allServices))).
		Complete(r)
}

func serviceOfSlice(_ context.Context, o client.Object) []reconcile.Request {
	name := o.GetLabels()[discoveryv1.LabelServiceName]
	if name == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

func serviceOfLoadBalancer(_ context.Context, lb *v1alpha1.LoadBalancer) []reconcile.Request {
	name := types.NamespacedName{Namespace: lb.Labels[v1alpha1.LabelOriginNamespace], Name: lb.Labels[v1alpha1.LabelOriginName]}
	if name.Namespace == "" || name.Name == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: name}}
}

// localServices are those whose endpoints' nodes may have changed; all others share the tenant's Addresses.
func (r *serviceReconciler) localServices(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.servicesOf(ctx, func(policy corev1.ServiceExternalTrafficPolicy) bool {
		return policy == corev1.ServiceExternalTrafficPolicyLocal
	})
}

// servicesOf are the Services of type LoadBalancer of some policies.
func (r *serviceReconciler) servicesOf(ctx context.Context, wanted func(corev1.ServiceExternalTrafficPolicy) bool) []reconcile.Request {
	var services corev1.ServiceList
	if err := r.tenant.List(ctx, &services); err != nil {
		return nil
	}
	var requests []reconcile.Request
	for _, s := range services.Items {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer && wanted(s.Spec.ExternalTrafficPolicy) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&s)})
		}
	}
	return requests
}

// nodeMatters lets through only what changes which addresses a node contributes: heartbeats and readiness do not.
var nodeMatters = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
	return !equality.Semantic.DeepEqual(convert.Node(before), convert.Node(after))
}}

// conflictRetry is when to look again at what somebody else has just changed: by then the cache knows of it.
const conflictRetry = 200 * time.Millisecond

// Reconcile brings the hub and the Service's status to what the Service says. That somebody else wrote meanwhile is no error.
func (r *serviceReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := r.reconcile(ctx, req)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		log.FromContext(ctx).V(1).Info("changed meanwhile: it is looked at again", "cause", err.Error())
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	}
	return result, err
}

func (r *serviceReconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var service corev1.Service
	err := r.tenant.Get(ctx, req.NamespacedName, &service)
	if apierrors.IsNotFound(err) {
		r.faults.Remove(req.NamespacedName)
		r.lag.forget(req.NamespacedName)
		_, err := r.deleteFromHub(ctx, req.NamespacedName, "")
		return reconcile.Result{}, err
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if service.DeletionTimestamp == nil && translate.Owns(convert.Service(&service), r.config.ClassRequired) {
		again, err := r.ensure(ctx, &service)
		return reconcile.Result{RequeueAfter: again}, err
	}
	r.lag.forget(req.NamespacedName)
	return reconcile.Result{}, r.cleanUp(ctx, &service)
}

// ensure keeps the order that others rely on: the finalizer before anything on the hub, an earlier namesake's
// LoadBalancer gone before the new one, the status last. It is to be done again after that time, if it is not 0.
func (r *serviceReconciler) ensure(ctx context.Context, service *corev1.Service) (again time.Duration, err error) {
	if err := r.setFinalizer(ctx, service, true); err != nil {
		return 0, err
	}
	gone, err := r.deleteFromHub(ctx, client.ObjectKeyFromObject(service), string(service.UID))
	if err != nil {
		return 0, err
	}
	if !gone {
		return 0, r.waitForEarlier(ctx, service)
	}
	wished, problems, again, err := r.wish(ctx, service)
	if err != nil {
		return 0, err
	}
	if problem, refused := translate.Refused(problems); refused {
		kept, err := r.retain(ctx, wished, problems)
		if err != nil {
			return 0, err
		}
		if !kept {
			if _, err := r.deleteFromHub(ctx, client.ObjectKeyFromObject(service), ""); err != nil {
				return 0, err
			}
			condition := metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: problem.Reason, Message: problem.Message}
			return 0, r.publish(ctx, service, &corev1.LoadBalancerStatus{}, condition, nil)
		}
	}
	lb, err := r.push(ctx, service, wished)
	if err != nil {
		return 0, r.pushFailed(ctx, service, err)
	}
	status, refusal := r.config.accept(lb.Status.LoadBalancer)
	condition, unconfirmed := r.lag.note(service, lb, mirror(lb, problems), time.Now())
	if again == 0 || unconfirmed > 0 && unconfirmed < again {
		again = unconfirmed
	}
	condition = r.away.doubt(condition)
	if refusal != nil {
		condition = *refusal
	}
	return again, r.publish(ctx, service, &status, condition, problems)
}

// waitForEarlier says in the condition of a new Service why it waits. The deletion on the hub is an event, which starts the next attempt.
func (r *serviceReconciler) waitForEarlier(ctx context.Context, service *corev1.Service) error {
	if meta.FindStatusCondition(service.Status.Conditions, conditionReady) != nil {
		return nil // it has a LoadBalancer of its own, of which the condition is
	}
	return r.publish(ctx, service, nil, metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonPending,
		Message: "waiting until the management cluster has deleted the LoadBalancer of an earlier Service of this name"}, nil)
}

// retain is retain with what is on the hub. Where nothing is, nothing is kept.
func (r *serviceReconciler) retain(ctx context.Context, wished *v1alpha1.LoadBalancer, problems []translate.Problem) (bool, error) {
	var current v1alpha1.LoadBalancer
	err := r.hub.Get(ctx, client.ObjectKeyFromObject(wished), &current)
	if err != nil || current.DeletionTimestamp != nil {
		return false, client.IgnoreNotFound(err)
	}
	return retain(wished, &current, problems), nil
}

// wish gathers what the Service's translation needs. It is to be done again after that time, if it is not 0.
func (r *serviceReconciler) wish(ctx context.Context, service *corev1.Service) (wished *v1alpha1.LoadBalancer, problems []translate.Problem, again time.Duration, err error) {
	var endpoints []translate.Slice
	var nodes map[string]translate.Node
	s := convert.Service(service)
	if s.LocalOnly {
		var all discoveryv1.EndpointSliceList
		if err := r.tenant.List(ctx, &all, client.InNamespace(service.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service.Name}); err != nil {
			return nil, nil, 0, err
		}
		for i := range all.Items {
			endpoints = append(endpoints, convert.Slice(&all.Items[i]))
		}
		if nodes, err = r.nodesOf(ctx, endpoints); err != nil {
			return nil, nil, 0, err
		}
	}
	lb, problems := translate.Wish(s, nodes, endpoints, r.config.NodeAddressType, r.config.HubNamespace)
	if lb.Local == nil {
		return convert.LoadBalancer(lb), append(problems, r.nodes.get()...), 0, nil
	}
	resolved, failed := r.config.resolve(ctx, *lb.Local)
	if len(failed) > 0 {
		again = resolveEvery
	}
	kept, left := listable("node ", resolved)
	left = append(left, failed...)
	kept, beyond := translate.Listed(kept, translate.MaxOwnNames)
	if left = append(left, beyondBounds(beyond)...); len(left) > 0 {
		problems = append(problems, translate.LeftOut(left))
	}
	lb.Local = &kept
	return convert.LoadBalancer(lb), problems, again, nil
}

// nodesOf returns the nodes on which there are endpoints, by name.
func (r *serviceReconciler) nodesOf(ctx context.Context, endpoints []translate.Slice) (map[string]translate.Node, error) {
	nodes := map[string]translate.Node{}
	for _, slice := range endpoints {
		for _, e := range slice.Endpoints {
			if _, known := nodes[e.Node]; known {
				continue
			}
			var node corev1.Node
			err := r.tenant.Get(ctx, client.ObjectKey{Name: e.Node}, &node)
			if client.IgnoreNotFound(err) != nil {
				return nil, err
			}
			if err == nil {
				nodes[e.Node] = convert.Node(&node)
			}
		}
	}
	return nodes, nil
}

// push creates or updates the LoadBalancer on the hub and returns what stands there.
func (r *serviceReconciler) push(ctx context.Context, service *corev1.Service, wished *v1alpha1.LoadBalancer) (*v1alpha1.LoadBalancer, error) {
	var current v1alpha1.LoadBalancer
	err := r.hub.Get(ctx, client.ObjectKeyFromObject(wished), &current)
	if apierrors.IsNotFound(err) {
		r.event(service, corev1.EventTypeNormal, eventEnsuring, "Ensuring load balancer")
		return wished, r.hub.Create(ctx, wished)
	}
	if err != nil {
		return nil, err
	}
	labelled := true
	for key, value := range wished.Labels {
		labelled = labelled && current.Labels[key] == value
	}
	// The one annotation of ours has no field; those of others stay.
	proxy := wished.Annotations[v1alpha1.AnnotationProxyProtocol]
	annotated := current.Annotations[v1alpha1.AnnotationProxyProtocol] == proxy
	if labelled && annotated && equality.Semantic.DeepEqual(current.Spec, wished.Spec) {
		return &current, nil
	}
	if proxy == "" {
		delete(current.Annotations, v1alpha1.AnnotationProxyProtocol)
	} else {
		metav1.SetMetaDataAnnotation(&current.ObjectMeta, v1alpha1.AnnotationProxyProtocol, proxy)
	}
	current.Spec = wished.Spec
	if current.Labels == nil {
		current.Labels = map[string]string{}
	}
	for key, value := range wished.Labels {
		current.Labels[key] = value
	}
	if err := r.hub.Update(ctx, &current); err != nil {
		return nil, err
	}
	r.event(service, corev1.EventTypeNormal, eventUpdated, "Updated load balancer")
	return &current, nil
}

// pushFailed tells the Service why the hub did not take it.
func (r *serviceReconciler) pushFailed(ctx context.Context, service *corev1.Service, cause error) error {
	if apierrors.IsConflict(cause) || apierrors.IsAlreadyExists(cause) {
		return cause // the cache is behind; the retry reads it anew
	}
	condition := metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonHubRefused, Message: "the management cluster did not accept the LoadBalancer: " + cause.Error()}
	if apierrors.HasStatusCause(cause, corev1.NamespaceTerminatingCause) || apierrors.IsNotFound(cause) {
		condition.Message = fmt.Sprintf("the management cluster does not serve this tenant any more, since its namespace %s is gone or going: %v", r.config.HubNamespace, cause)
	}
	var status *corev1.LoadBalancerStatus
	if apierrors.IsForbidden(cause) || apierrors.IsNotFound(cause) || apierrors.IsInvalid(cause) {
		// Where nothing is on the hub any more its addresses are not this Service's: they go to others.
		var there v1alpha1.LoadBalancer
		if err := r.hub.Get(ctx, client.ObjectKey{Namespace: r.config.HubNamespace, Name: string(service.UID)}, &there); apierrors.IsNotFound(err) {
			status = &corev1.LoadBalancerStatus{}
		}
	}
	return errors.Join(cause, r.publish(ctx, service, status, condition, nil))
}

// reasonPending is the reason of a Service's condition while the hub has not answered yet.
const reasonPending = "Pending"

// reasonHubRefused is that of a Service of which the management cluster takes nothing.
const reasonHubRefused = "HubRefused"

// servedBut begins what the hub says of a LoadBalancer that is served in part.
const servedBut = "served, but: "

// mirror is the Service's condition: the hub's own Ready, or what the tenant's side left out.
func mirror(lb *v1alpha1.LoadBalancer, problems []translate.Problem) metav1.Condition {
	out := metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonPending, Message: "waiting for the management cluster to answer"}
	if c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		out.Status, out.Reason, out.Message = c.Status, c.Reason, c.Message
	} else if len(lb.Status.LoadBalancer.Ingress) > 0 {
		// A KubeLB manager has no conditions.
		out.Status, out.Reason, out.Message = metav1.ConditionTrue, "Ready", "an external address is assigned"
	}
	switch {
	case len(problems) == 0 || out.Status != metav1.ConditionTrue:
	case strings.HasPrefix(out.Message, servedBut):
		out.Message += "; " + problems[0].Message // what the hub says stays
	default:
		out.Reason, out.Message = problems[0].Reason, servedBut+problems[0].Message
	}
	return out
}

// publish writes status and condition, where they differ, and tells in events what changed. A nil status leaves the
// Service's addresses as they are. A condition without a generation is of the Service's present one.
func (r *serviceReconciler) publish(ctx context.Context, service *corev1.Service, status *corev1.LoadBalancerStatus, condition metav1.Condition, problems []translate.Problem) error {
	before := service.DeepCopy()
	if status != nil {
		service.Status.LoadBalancer = *status.DeepCopy()
	}
	condition.ObservedGeneration = cmp.Or(condition.ObservedGeneration, service.Generation)
	known := meta.FindStatusCondition(before.Status.Conditions, conditionReady)
	plain.SetCondition(&service.Status.Conditions, condition)
	if equality.Semantic.DeepEqual(before.Status, service.Status) {
		return nil
	}
	if err := r.tenant.Status().Patch(ctx, service, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return client.IgnoreNotFound(err)
	}
	ensured := len(service.Status.LoadBalancer.Ingress) > 0 && !equality.Semantic.DeepEqual(before.Status.LoadBalancer, service.Status.LoadBalancer)
	if ensured {
		r.event(service, corev1.EventTypeNormal, eventEnsured, "Ensured load balancer")
	}
	changed := known == nil || known.Reason != condition.Reason || known.Message != condition.Message
	if changed || !equality.Semantic.DeepEqual(before.Status.LoadBalancer, service.Status.LoadBalancer) {
		r.log(ctx, service, condition)
	}
	if changed {
		r.emitEvents(service, known, condition, problems, ensured)
	}
	return nil
}

// emitEvents emits Warning events for a fault of a Service and for its problems, or a Normal event for its recovery. ensured: the event EnsuredLoadBalancer
// has just reported the recovery.
func (r *serviceReconciler) emitEvents(service *corev1.Service, known *metav1.Condition, condition metav1.Condition, problems []translate.Problem, ensured bool) {
	key := client.ObjectKeyFromObject(service)
	reason := faultEventReason(condition)
	if reason != "" {
		r.event(service, corev1.EventTypeWarning, reason, condition.Message)
		r.faults.Add(key)
	}
	for _, p := range problems {
		if p.Partial {
			r.event(service, corev1.EventTypeWarning, eventSyncFailed, p.Message)
		}
	}
	if reason != "" || condition.Status != metav1.ConditionTrue {
		return
	}
	if reported := r.faults.Remove(key); !ensured && (reported || known != nil && faultEventReason(*known) != "") {
		r.event(service, corev1.EventTypeNormal, faults.RecoveryReason, faults.RecoveryMessage(condition.Message))
	}
}

// faultEventReason is the reason of the Warning event for a condition, empty if the condition reports no fault or only that something is waited for.
func faultEventReason(c metav1.Condition) string {
	switch {
	case c.Reason == translate.ReasonNoNodes, c.Reason == translate.ReasonNoNodesOfFamily:
		return eventUnavailable
	case c.Reason == v1alpha1.ReasonAddressConflict:
		return c.Reason
	case c.Status != metav1.ConditionTrue && !waiting[c.Reason]:
		return eventSyncFailed
	}
	return ""
}

// log writes a line for operators: how the Service is served, or a warning that says why it is not.
func (r *serviceReconciler) log(ctx context.Context, service *corev1.Service, condition metav1.Condition) {
	logger := slog.New(logr.ToSlogHandler(log.FromContext(ctx)))
	var addresses []string
	for _, i := range service.Status.LoadBalancer.Ingress {
		addresses = append(addresses, cmp.Or(i.IP, i.Hostname))
	}
	of := []any{"service", client.ObjectKeyFromObject(service).String(), "addresses", addresses, "reason", condition.Reason, "message", plain.Note(condition.Message)}
	switch {
	case condition.Status == metav1.ConditionTrue:
		logger.Info("the Service is served", of...)
	case condition.Status == metav1.ConditionUnknown:
		logger.Warn("it is not known whether the Service is served", of...)
	case waiting[condition.Reason]:
		logger.Info("the Service waits", of...)
	default:
		logger.Warn("the Service is not served", of...)
	}
}

// waiting are reasons that pass by themselves and are worth no event.
var waiting = map[string]bool{reasonPending: true, "WaitingForGateway": true, "WaitingForAnnouncement": true}

// cleanUp lets go of a Service that is not ours any more: first the hub, then the finalizer, then the status. A Service
// that never was ours is not touched, even if it carries the same well-known finalizer for another controller.
func (r *serviceReconciler) cleanUp(ctx context.Context, service *corev1.Service) error {
	key := client.ObjectKeyFromObject(service)
	var lbs v1alpha1.LoadBalancerList
	if err := r.listOnHub(ctx, key, &lbs); err != nil {
		return err
	}
	if len(lbs.Items) == 0 && !r.config.was(service) {
		return nil
	}
	if slices.ContainsFunc(lbs.Items, func(lb v1alpha1.LoadBalancer) bool { return lb.DeletionTimestamp == nil }) {
		r.event(service, corev1.EventTypeNormal, eventDeleting, "Deleting load balancer")
	}
	gone, err := r.deleteFromHub(ctx, key, "")
	if err != nil {
		r.event(service, corev1.EventTypeWarning, "DeleteLoadBalancerFailed", err.Error())
		return err
	}
	if !gone {
		return nil // the hub's watch wakes us up
	}
	if err := r.setFinalizer(ctx, service, false); err != nil {
		return err
	}
	if err := r.clearStatus(ctx, service); err != nil {
		return err
	}
	r.event(service, corev1.EventTypeNormal, eventDeleted, "Deleted load balancer")
	return nil
}

// was tells whether a Service was ours, by what it bears itself.
func (c Config) was(service *corev1.Service) bool {
	return meta.FindStatusCondition(service.Status.Conditions, conditionReady) != nil ||
		slices.ContainsFunc(legacyFinalizers(), func(f string) bool { return controllerutil.ContainsFinalizer(service, f) }) ||
		controllerutil.ContainsFinalizer(service, cleanupFinalizer) && translate.Owns(convert.Service(service), c.ClassRequired)
}

// clearStatus comes last: the condition says that the Service was ours, for whoever goes on after a crash.
func (r *serviceReconciler) clearStatus(ctx context.Context, service *corev1.Service) error {
	before := service.DeepCopy()
	service.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	meta.RemoveStatusCondition(&service.Status.Conditions, conditionReady)
	r.faults.Remove(client.ObjectKeyFromObject(service))
	if equality.Semantic.DeepEqual(before.Status, service.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.tenant.Status().Patch(ctx, service, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})))
}

// setFinalizer adds our finalizer, or removes it; KubeLB's own is removed in either case.
func (r *serviceReconciler) setFinalizer(ctx context.Context, service *corev1.Service, present bool) error {
	before := service.DeepCopy()
	changed := false
	for _, f := range legacyFinalizers() {
		changed = controllerutil.RemoveFinalizer(service, f) || changed
	}
	if present {
		changed = controllerutil.AddFinalizer(service, cleanupFinalizer) || changed
	} else {
		changed = controllerutil.RemoveFinalizer(service, cleanupFinalizer) || changed
	}
	if !changed {
		return nil
	}
	err := r.tenant.Patch(ctx, service, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if !present {
		err = client.IgnoreNotFound(err)
	}
	return err
}

func (r *serviceReconciler) listOnHub(ctx context.Context, service types.NamespacedName, into *v1alpha1.LoadBalancerList) error {
	return r.hub.List(ctx, into, client.InNamespace(r.config.HubNamespace), client.MatchingLabels{
		v1alpha1.LabelOriginNamespace: service.Namespace, v1alpha1.LabelOriginName: service.Name})
}

// deleteFromHub deletes all LoadBalancers of the Service but the one to keep, and reports whether they are gone.
func (r *serviceReconciler) deleteFromHub(ctx context.Context, service types.NamespacedName, keep string) (bool, error) {
	var lbs v1alpha1.LoadBalancerList
	if err := r.listOnHub(ctx, service, &lbs); err != nil {
		return false, err
	}
	lbs.Items = slices.DeleteFunc(lbs.Items, func(lb v1alpha1.LoadBalancer) bool { return lb.Name == keep })
	for i := range lbs.Items {
		if lbs.Items[i].DeletionTimestamp != nil {
			continue
		}
		if err := r.hub.Delete(ctx, &lbs.Items[i]); client.IgnoreNotFound(err) != nil {
			return false, fmt.Errorf("delete LoadBalancer %s on the hub: %w", lbs.Items[i].Name, err)
		}
	}
	return len(lbs.Items) == 0, nil
}

func (r *serviceReconciler) event(service *corev1.Service, kind, reason, message string) {
	r.events.Eventf(service, nil, kind, reason, "Sync", "%s", plain.Note(message))
}
