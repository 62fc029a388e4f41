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
	// conditionReady is the only condition that this controller writes on a Service. A Service with this condition is, or was, ours.
	conditionReady = v1alpha1.ServiceCondition
)

// legacyFinalizers returns the finalizers of KubeLB's own CCM. The second one is of its first releases.
func legacyFinalizers() []string { return []string{foreign.Finalizer, "kubelb.k8c.io/lb-finalizer"} }

// Reasons of events: those of Kubernetes' service controller.
const (
	eventEnsuring    = "EnsuringLoadBalancer"
	eventEnsured     = "EnsuredLoadBalancer"
	eventUpdated     = "UpdatedLoadBalancer"
	eventDeleting    = "DeletingLoadBalancer"
	eventDeleted     = "DeletedLoadBalancer"
	eventSyncFailed  = "SyncLoadBalancerFailed"
	eventUnavailable = "UnAvailableLoadBalancer"
)

// serviceReconciler writes one LoadBalancer on the hub for each Service that is ours, and copies its status back.
type serviceReconciler struct {
	tenant client.Client
	hub    client.Client
	events events.EventRecorder
	// faults holds the Services of which an event has reported a fault.
	faults  faults.Tracker
	config  Config
	nodes   *nodesProblem
	contact *hubContact
	lag     generationLag
}

// setUp makes the controller reconcile a Service when the Service, one of its EndpointSlices or its LoadBalancer changes, when a node changes and its
// externalTrafficPolicy is Local, and when the problem of the nodes or the contact with the hub changes.
func (r *serviceReconciler) setUp(mgr ctrl.Manager, hub cluster.Cluster) error {
	return ctrl.NewControllerManagedBy(mgr).Named("service").
		For(&corev1.Service{}).
		Watches(&discoveryv1.EndpointSlice{}, handler.EnqueueRequestsFromMapFunc(serviceOfSlice)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.localServices), withPredicate(nodeMatters)).
		WatchesRawSource(source.Kind(hub.GetCache(), &v1alpha1.LoadBalancer{}, handler.TypedEnqueueRequestsFromMapFunc(serviceOfLoadBalancer))).
		WatchesRawSource(source.Channel(r.nodes.changed, handler.EnqueueRequestsFromMapFunc(r.servicesOfAllNodes))).
		WatchesRawSource(source.Channel(r.contact.changed, handler.EnqueueRequestsFromMapFunc(r.allServices))).
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

// localServices returns requests for the Services with externalTrafficPolicy Local, whose targets depend on nodes. All others refer to the tenant's Addresses.
func (r *serviceReconciler) localServices(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.servicesOf(ctx, func(policy corev1.ServiceExternalTrafficPolicy) bool {
		return policy == corev1.ServiceExternalTrafficPolicyLocal
	})
}

// servicesOf returns requests for the Services of type LoadBalancer with a wanted externalTrafficPolicy.
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

// nodeMatters drops updates of nodes that change none of the fields from which targets are made, such as heartbeats and readiness.
var nodeMatters = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld.(*corev1.Node), e.ObjectNew.(*corev1.Node)
	return !equality.Semantic.DeepEqual(convert.Node(before), convert.Node(after))
}}

// conflictRetry is the pause after a conflict with another write. By then the cache has that write.
const conflictRetry = 200 * time.Millisecond

// Reconcile writes the request of the Service to the hub, and the hub's answer into the Service's status. A conflict with another write is no error.
func (r *serviceReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := r.reconcile(ctx, req)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		log.FromContext(ctx).V(1).Info("another program has changed the object; trying again", "cause", err.Error())
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	}
	return result, err
}

func (r *serviceReconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var service corev1.Service
	err := r.tenant.Get(ctx, req.NamespacedName, &service)
	if apierrors.IsNotFound(err) {
		r.faults.Remove(req.NamespacedName)
		r.lag.remove(req.NamespacedName)
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
	r.lag.remove(req.NamespacedName)
	return reconcile.Result{}, r.cleanUp(ctx, &service)
}

// ensure brings a Service that is ours to the hub. The order matters: first the finalizer, so that no LoadBalancer is left behind. Then the LoadBalancer of an
// earlier Service of the same name is deleted, since it may have the requested address. The status comes last. again is the time after which the Service
// has to be reconciled again, 0 if it need not be.
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
	desired, problems, again, err := r.desired(ctx, service)
	if err != nil {
		return 0, err
	}
	if problem, refused := translate.Refused(problems); refused {
		kept, err := r.retain(ctx, desired, problems)
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
	lb, err := r.push(ctx, service, desired)
	if err != nil {
		return 0, r.pushFailed(ctx, service, err)
	}
	status, refusal := r.config.filterStatus(lb.Status.LoadBalancer)
	condition, unconfirmed := r.lag.check(service, lb, conditionOf(lb, problems), time.Now())
	if again == 0 || unconfirmed > 0 && unconfirmed < again {
		again = unconfirmed
	}
	condition = r.contact.unknownWhileSilent(condition)
	if refusal != nil {
		condition = *refusal
	}
	return again, r.publish(ctx, service, &status, condition, problems)
}

// waitForEarlier writes into the condition of a new Service that it waits for the deletion of an earlier one. The deletion on the hub is an event, which starts the next attempt.
func (r *serviceReconciler) waitForEarlier(ctx context.Context, service *corev1.Service) error {
	if meta.FindStatusCondition(service.Status.Conditions, conditionReady) != nil {
		return nil // the condition is that of the Service's own LoadBalancer
	}
	return r.publish(ctx, service, nil, metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonPending,
		Message: "waiting until the management cluster has deleted the LoadBalancer of an earlier Service of this name"}, nil)
}

// retain reads the LoadBalancer on the hub and calls retain with it. It returns false if there is none, or if it is being deleted.
func (r *serviceReconciler) retain(ctx context.Context, desired *v1alpha1.LoadBalancer, problems []translate.Problem) (bool, error) {
	var current v1alpha1.LoadBalancer
	err := r.hub.Get(ctx, client.ObjectKeyFromObject(desired), &current)
	if err != nil || current.DeletionTimestamp != nil {
		return false, client.IgnoreNotFound(err)
	}
	return retain(desired, &current, problems), nil
}

// desired returns the LoadBalancer that the Service asks for. For externalTrafficPolicy Local it reads the EndpointSlices and their nodes. again is the time
// after which it has to be called again, 0 if it need not be: a node's host name did not resolve.
func (r *serviceReconciler) desired(ctx context.Context, service *corev1.Service) (desired *v1alpha1.LoadBalancer, problems []translate.Problem, again time.Duration, err error) {
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
	lb, problems := translate.DesiredLoadBalancer(s, nodes, endpoints, r.config.NodeAddressType, r.config.HubNamespace)
	if lb.Local == nil {
		return convert.LoadBalancer(lb), append(problems, r.nodes.get()...), 0, nil
	}
	resolved, failed := r.config.resolve(ctx, *lb.Local)
	if len(failed) > 0 {
		again = resolveEvery
	}
	kept, left := splitAccepted("node ", resolved)
	left = append(left, failed...)
	kept, beyond := translate.LimitTargets(kept, translate.MaxOwnHostnameCharacters)
	if left = append(left, beyondBounds(beyond)...); len(left) > 0 {
		problems = append(problems, translate.NodesLeftOut(left))
	}
	lb.Local = &kept
	return convert.LoadBalancer(lb), problems, again, nil
}

// nodesOf returns the nodes of the endpoints, by name. It skips nodes that do not exist.
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

// push creates or updates the LoadBalancer on the hub, and returns it as it is there.
func (r *serviceReconciler) push(ctx context.Context, service *corev1.Service, desired *v1alpha1.LoadBalancer) (*v1alpha1.LoadBalancer, error) {
	var current v1alpha1.LoadBalancer
	err := r.hub.Get(ctx, client.ObjectKeyFromObject(desired), &current)
	if apierrors.IsNotFound(err) {
		r.event(service, corev1.EventTypeNormal, eventEnsuring, "Ensuring load balancer")
		return desired, r.hub.Create(ctx, desired)
	}
	if err != nil {
		return nil, err
	}
	if !merge(&current, desired) {
		return &current, nil
	}
	if err := r.hub.Update(ctx, &current); err != nil {
		return nil, err
	}
	r.event(service, corev1.EventTypeNormal, eventUpdated, "Updated load balancer")
	return &current, nil
}

// pushFailed writes into the Service's condition why the hub has not accepted the LoadBalancer.
func (r *serviceReconciler) pushFailed(ctx context.Context, service *corev1.Service, cause error) error {
	if apierrors.IsConflict(cause) || apierrors.IsAlreadyExists(cause) {
		return cause // the cache is out of date; the retry reads the object again
	}
	condition := metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonHubRefused, Message: "the management cluster did not accept the LoadBalancer: " + cause.Error()}
	if apierrors.HasStatusCause(cause, corev1.NamespaceTerminatingCause) || apierrors.IsNotFound(cause) {
		condition.Message = fmt.Sprintf("the management cluster does not serve this tenant any more: its namespace %s is gone or being deleted: %v", r.config.HubNamespace, cause)
	}
	var status *corev1.LoadBalancerStatus
	if apierrors.IsForbidden(cause) || apierrors.IsNotFound(cause) || apierrors.IsInvalid(cause) {
		// If the hub has no LoadBalancer any more, another LoadBalancer may get the Service's addresses.
		var there v1alpha1.LoadBalancer
		if err := r.hub.Get(ctx, client.ObjectKey{Namespace: r.config.HubNamespace, Name: string(service.UID)}, &there); apierrors.IsNotFound(err) {
			status = &corev1.LoadBalancerStatus{}
		}
	}
	return errors.Join(cause, r.publish(ctx, service, status, condition, nil))
}

// reasonPending is the reason of a Service's condition while the hub has not answered yet.
const reasonPending = "Pending"

// reasonHubRefused is the reason of a Service's condition: the hub does not accept the LoadBalancer, or no request at all.
const reasonHubRefused = "HubRefused"

// servedBut begins the message of the condition Ready if a LoadBalancer is served in part. The hub's controllers use the same prefix.
const servedBut = "served, but: "

// conditionOf returns the Service's condition: the condition Ready of the LoadBalancer. If that is True, it also names the first problem that the CCM has found.
func conditionOf(lb *v1alpha1.LoadBalancer, problems []translate.Problem) metav1.Condition {
	out := metav1.Condition{Type: conditionReady, Status: metav1.ConditionFalse, Reason: reasonPending, Message: "waiting for the management cluster to answer"}
	if c := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		out.Status, out.Reason, out.Message = c.Status, c.Reason, c.Message
	} else if len(lb.Status.LoadBalancer.Ingress) > 0 {
		// KubeLB's own manager writes no conditions.
		out.Status, out.Reason, out.Message = metav1.ConditionTrue, "Ready", "an external address is assigned"
	}
	switch {
	case len(problems) == 0 || out.Status != metav1.ConditionTrue:
	case strings.HasPrefix(out.Message, servedBut):
		out.Message += "; " + problems[0].Message // the hub's own message stays
	default:
		out.Reason, out.Message = problems[0].Reason, servedBut+problems[0].Message
	}
	return out
}

// publish writes the addresses and the condition into the Service's status if they differ. It logs the change and sends events of it. If status is nil, the
// addresses stay as they are. A condition without observedGeneration gets the Service's present generation.
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

// emitEvents sends a Warning event of a fault of the Service, a Warning event of each problem, or a Normal event of the recovery. ensured: the event
// EnsuredLoadBalancer has just reported the recovery.
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

// faultEventReason returns the reason of the Warning event of a condition. It is empty if the condition reports no fault, or a state that passes by itself.
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

// log writes a line with the condition and the addresses of the Service. It is a warning if the Service is not served, or if that is not known.
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

// waiting are reasons of conditions that pass by themselves, and get no event.
var waiting = map[string]bool{reasonPending: true, "WaitingForGateway": true, "WaitingForAnnouncement": true}

// cleanUp cleans up after a Service that is not ours any more, or is being deleted: first its LoadBalancer on the hub, then the finalizer, then the
// status. It does not change a Service that never was ours, even if the Service has the same finalizer: each load-balancer controller uses it.
func (r *serviceReconciler) cleanUp(ctx context.Context, service *corev1.Service) error {
	key := client.ObjectKeyFromObject(service)
	var lbs v1alpha1.LoadBalancerList
	if err := r.listOnHub(ctx, key, &lbs); err != nil {
		return err
	}
	if len(lbs.Items) == 0 && !r.config.wasOwned(service) {
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
		return nil // the deletion on the hub is an event, which starts the next attempt
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

// wasOwned reports whether a Service is or was ours, by its condition, its finalizers and its class.
func (c Config) wasOwned(service *corev1.Service) bool {
	return meta.FindStatusCondition(service.Status.Conditions, conditionReady) != nil ||
		slices.ContainsFunc(legacyFinalizers(), func(f string) bool { return controllerutil.ContainsFinalizer(service, f) }) ||
		controllerutil.ContainsFinalizer(service, cleanupFinalizer) && translate.Owns(convert.Service(service), c.ClassRequired)
}

// clearStatus removes the addresses and the condition. It has to come last: after a crash, the next process sees by the condition that the Service was ours.
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

// setFinalizer adds our finalizer, or removes it. In both cases it removes the finalizers of KubeLB's own CCM.
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

// deleteFromHub deletes all LoadBalancers of the Service except the one to keep, and reports whether they are gone.
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
