package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/core/translate"
)

// tenantReconciler creates a tenant's namespace and the credentials of its CCM, and deletes them.
type tenantReconciler struct {
	client client.Client
	// reader reads from the API server, without the cache. Secrets and other objects in tenants' namespaces are read by it: a watch of Secrets would read
	// the Secrets of all namespaces.
	reader client.Reader
	// credentials are the settings for the kubeconfigs of CCMs.
	credentials credentials
	// self is the manager's service account, which needs a RoleBinding in each tenant's namespace; nil if it has these rights already.
	self *types.NamespacedName
	// checked has the last successful check of each tenant.
	checked tenantChecks
	// addresses has the allocations of tenants.
	addresses *addressAllocator
	// filter decides which targets are allowed.
	filter *targetFilter
	// gateways knows which gateways are silent.
	gateways *gatewayMonitor
	// ccms knows which CCMs are silent. changed gets the Tenants whose condition Connected is out of date, and those whose endpoints were counted again.
	ccms    *ccmMonitor
	changed <-chan event.GenericEvent
	// namespace is the manager's own, with the trial quota.
	namespace string
	trial     trial
}

func (r *tenantReconciler) setUp(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("tenant").For(&v1alpha1.Tenant{}).
		Watches(&v1alpha1.LoadBalancer{}, debounced(tenantOfObject)).Watches(&v1alpha1.Addresses{}, debounced(tenantOfObject)).
		Watches(&v1alpha1.Gateway{}, tenantUseHandler()).
		WatchesRawSource(source.Channel(r.changed, &handler.EnqueueRequestForObject{})).
		Owns(&corev1.Namespace{}).
		// A Tenant is in the queue once at most, so tenants take turns. Workers overlap while they wait for the API server.
		WithOptions(controller.Options{MaxConcurrentReconciles: tenantWorkers}).
		Complete(r)
}

// tenantWorkers is how many Tenants are reconciled at the same time.
const tenantWorkers = 4

// tenantOfObject requests the Tenant of the object's namespace.
func tenantOfObject(o client.Object) reconcile.Request {
	name, _ := translate.TenantOf(o.GetNamespace())
	return reconcile.Request{NamespacedName: client.ObjectKey{Name: name}}
}

// Reconcile implements reconcile.Reconciler.
func (r *tenantReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := r.reconcile(ctx, req)
	return retryConflicts(ctx, result, err)
}

// reconcile creates all objects of the tenant, in the order of their dependencies.
func (r *tenantReconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var tenant v1alpha1.Tenant
	if err := r.client.Get(ctx, req.NamespacedName, &tenant); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if tenant.DeletionTimestamp != nil {
		result, err := r.cleanUp(ctx, &tenant)
		if err != nil && !apierrors.IsConflict(err) {
			err = errors.Join(err, r.setStatus(ctx, &tenant, v1alpha1.TenantTerminating, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
				Reason: "Terminating", Message: "the Tenant cannot be deleted yet: " + err.Error()}))
		}
		return result, err
	}
	if before := tenant.DeepCopy(); controllerutil.AddFinalizer(&tenant, v1alpha1.CleanupFinalizer) {
		if err := patch(ctx, r.client, &tenant, before); err != nil {
			return reconcile.Result{}, err
		}
	}
	if err := r.clearAddresses(ctx, namespaceOf(&tenant)); err != nil {
		return reconcile.Result{}, err
	}
	if tenant.Spec.Revoked {
		return r.revoke(ctx, &tenant)
	}
	left, condition, err := r.ensureAll(ctx, &tenant)
	if apierrors.IsConflict(err) {
		return reconcile.Result{}, err // a conflict is no failure for the status
	}
	phase := v1alpha1.TenantReady
	switch {
	case err != nil:
		phase, condition.Reason, condition.Message = v1alpha1.TenantFailed, "ReconciliationFailed", err.Error()
	case condition.Status != metav1.ConditionTrue:
		phase = v1alpha1.TenantPending
	}
	conditions := []metav1.Condition{condition}
	if phase == v1alpha1.TenantReady {
		bounded, again, boundErr := r.ensureQuota(ctx, &tenant, time.Now())
		if apierrors.IsConflict(boundErr) {
			return reconcile.Result{}, boundErr
		}
		if bounded.Reason == reasonCounting && tenant.Status.Phase != v1alpha1.TenantReady {
			phase = v1alpha1.TenantPending
			conditions[0].Status, conditions[0].Reason, conditions[0].Message = metav1.ConditionFalse, reasonCounting, bounded.Message
		}
		if again > 0 {
			left = min(left, again)
		}
		conditions, err = append(conditions, bounded), boundErr
	} else if err != nil && meta.FindStatusCondition(tenant.Status.Conditions, v1alpha1.ConditionBounded) != nil {
		conditions = append(conditions, metav1.Condition{Type: v1alpha1.ConditionBounded, Status: metav1.ConditionUnknown, Reason: "NotLooked",
			Message: "it is checked only for a Ready Tenant whether the management cluster counts its objects"})
	}
	if statusErr := r.setStatus(ctx, &tenant, phase, conditions...); err == nil {
		err = statusErr
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if u := tenant.Status.Used; u != nil && (u.ConnectionsPerPort != nil || u.NewConnectionsPerSecondPerPort != nil) {
		left = min(left, goneFor) // no event comes when the gateway with the highest use is gone
	}
	return reconcile.Result{RequeueAfter: left}, nil
}

// tenantCheck is a successful check of a tenant's objects: its time, and the state of the Tenant.
type tenantCheck struct {
	at         time.Time
	generation int64
	rotated    string
	condition  metav1.Condition
}

// tenantChecks has the last successful check of each tenant. The controller's workers share it.
type tenantChecks struct {
	mu       sync.Mutex // guards of
	byTenant map[string]tenantCheck
}

func (l *tenantChecks) get(tenant string) (tenantCheck, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	is, known := l.byTenant[tenant]
	return is, known
}

func (l *tenantChecks) set(tenant string, is tenantCheck) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byTenant == nil {
		l.byTenant = map[string]tenantCheck{}
	}
	l.byTenant[tenant] = is
}

func (l *tenantChecks) remove(tenant string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byTenant, tenant)
}

// ensureAll keeps the tenant's namespace and credentials. The objects in the namespace are not watched: they are checked periodically, and when the Tenant
// has changed. It returns the time until the next check.
func (r *tenantReconciler) ensureAll(ctx context.Context, tenant *v1alpha1.Tenant) (time.Duration, metav1.Condition, error) {
	failed := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	made, err := r.ensureNamespace(ctx, tenant)
	if err != nil {
		return 0, failed, err
	}
	every := r.credentials.checkInterval()
	now, rotated := time.Now(), tenant.Annotations[v1alpha1.AnnotationRotated]
	if before, is := r.checked.get(tenant.Name); is && !made && before.generation == tenant.Generation && before.rotated == rotated && now.Before(before.at.Add(every)) {
		return before.at.Add(every).Sub(now), before.condition, nil
	}
	r.checked.remove(tenant.Name)
	fresh, err := r.bindOwnRole(ctx, tenant)
	if err != nil {
		return 0, failed, err
	}
	condition, err := r.ensure(ctx, tenant)
	switch {
	case apierrors.IsForbidden(err) && fresh:
		// The API server's authorizer does not know the new RoleBinding yet.
		condition = metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "WaitingForRights",
			Message: "the manager waits until its new rights in namespace " + namespaceOf(tenant) + " are in effect"}
		return shortRetry, condition, nil
	case err != nil:
		return 0, failed, err
	case condition.Status != metav1.ConditionTrue:
		return shortRetry, condition, nil
	}
	r.checked.set(tenant.Name, tenantCheck{at: now, generation: tenant.Generation, rotated: rotated, condition: condition})
	return every, condition, nil
}

// shortRetry is the pause before a retry of something that takes a moment.
const shortRetry = 200 * time.Millisecond

// bindOwnRole gives the manager its rights in the tenant's namespace, and reports whether they are so new that the API server may not know them yet.
func (r *tenantReconciler) bindOwnRole(ctx context.Context, tenant *v1alpha1.Tenant) (bool, error) {
	if r.self == nil {
		return false, nil
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(tenant), Name: ownBinding}}
	err := r.apply(ctx, tenant, binding, func() {
		binding.RoleRef = rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: namespaceRole}
		binding.Subjects = []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: r.self.Namespace, Name: r.self.Name}}
	})
	return time.Since(binding.CreationTimestamp.Time) < bindingDelay, err
}

const (
	// ownBinding and namespaceRole are the RoleBinding and the ClusterRole of the manager's rights in a tenant's namespace. The chart creates the
	// role. The policy manager.kubelb.k8c.io names both.
	ownBinding, namespaceRole = "kubelb-manager", "kubelb-tenant-namespace"
	// bindingDelay is the time after which all API servers know a new RoleBinding. Creation times are in whole seconds.
	bindingDelay = 10 * time.Second
)

// revoke deletes the credentials. Without the ServiceAccount all its tokens are invalid.
func (r *tenantReconciler) revoke(ctx context.Context, tenant *v1alpha1.Tenant) (reconcile.Result, error) {
	r.checked.remove(tenant.Name)
	if err := r.removeCredentials(ctx, tenant); err != nil {
		err = fmt.Errorf("revoke the credentials of Tenant %s: %w", tenant.Name, err)
		if apierrors.IsConflict(err) {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, errors.Join(err, r.setStatus(ctx, tenant, v1alpha1.TenantFailed, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
			Reason: "ReconciliationFailed", Message: err.Error()}))
	}
	return reconcile.Result{}, r.setStatus(ctx, tenant, v1alpha1.TenantRevoked, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "Revoked",
		Message: "spec.revoked is true: the tenant has no credentials, and its LoadBalancers are not served"})
}

func (r *tenantReconciler) removeCredentials(ctx context.Context, tenant *v1alpha1.Tenant) error {
	var namespace corev1.Namespace
	if err := r.client.Get(ctx, client.ObjectKey{Name: namespaceOf(tenant)}, &namespace); err != nil {
		return client.IgnoreNotFound(err)
	}
	if _, err := r.bindOwnRole(ctx, tenant); err != nil {
		return err
	}
	for name, o := range map[string]client.Object{v1alpha1.CCMName: &corev1.ServiceAccount{}, v1alpha1.CCMKubeconfigSecret: &corev1.Secret{}} {
		o.SetNamespace(namespace.Name)
		o.SetName(name)
		if err := r.client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

func (r *tenantReconciler) setStatus(ctx context.Context, tenant *v1alpha1.Tenant, phase string, conditions ...metav1.Condition) error {
	if err := r.addresses.load(ctx); err != nil {
		return err
	}
	before := tenant.Status.DeepCopy()
	var err error
	if tenant.Status.Used, err = r.usage(ctx, tenant); err != nil {
		return err
	}
	tenant.Status.ObservedGeneration, tenant.Status.Phase = tenant.Generation, phase
	for _, condition := range conditions {
		condition.ObservedGeneration = tenant.Generation
		plain.SetCondition(&tenant.Status.Conditions, condition)
	}
	r.ccms.setCondition(tenant)
	if equality.Semantic.DeepEqual(before, &tenant.Status) {
		return nil
	}
	return r.client.Status().Update(ctx, tenant)
}

// cleanUp deletes the LoadBalancers, so that gateways withdraw their addresses, then the namespace, and then removes the Tenant's finalizer.
func (r *tenantReconciler) cleanUp(ctx context.Context, tenant *v1alpha1.Tenant) (reconcile.Result, error) {
	namespace := &corev1.Namespace{}
	err := r.client.Get(ctx, client.ObjectKey{Name: namespaceOf(tenant)}, namespace)
	if apierrors.IsNotFound(err) || err == nil && namespace.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByKubeLB {
		if before := tenant.DeepCopy(); controllerutil.RemoveFinalizer(tenant, v1alpha1.CleanupFinalizer) {
			return reconcile.Result{}, client.IgnoreNotFound(patch(ctx, r.client, tenant, before))
		}
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	err = r.setStatus(ctx, tenant, v1alpha1.TenantTerminating, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
		Reason: "Terminating", Message: phrase.Few(append([]string{"namespace " + namespace.Name + " is being deleted"}, deletionBlockers(namespace)...), "; ")})
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := r.releaseFinalizers(ctx, namespace.Name, time.Now()); err != nil {
		return reconcile.Result{}, err
	}
	r.addresses.extendReservations(namespace.Name, time.Now())
	r.checked.remove(tenant.Name)
	if namespace.DeletionTimestamp == nil {
		if _, err := r.bindOwnRole(ctx, tenant); err != nil {
			return reconcile.Result{}, err
		}
	}
	if left, err := r.deleteLoadBalancers(ctx, namespace.Name); err != nil || left {
		// Without this, the namespace controller would wait many seconds before its next look at finalizers.
		return reconcile.Result{RequeueAfter: 200 * time.Millisecond}, err
	}
	if namespace.DeletionTimestamp == nil {
		if err := r.client.Delete(ctx, namespace); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	// The namespace controller deletes the rest. Finalizers are checked until the namespace is gone.
	return reconcile.Result{RequeueAfter: releaseEvery}, nil
}

// deletionBlockers returns why a namespace that is being deleted still exists, according to the namespace controller.
func deletionBlockers(namespace *corev1.Namespace) (why []string) {
	for _, c := range namespace.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			why = append(why, c.Message)
		}
	}
	return why
}

// deleteLoadBalancers deletes all LoadBalancers of the namespace, and reports whether some still exist.
func (r *tenantReconciler) deleteLoadBalancers(ctx context.Context, namespace string) (bool, error) {
	var lbs v1alpha1.LoadBalancerList
	if err := r.client.List(ctx, &lbs, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return false, err
	}
	for i := range lbs.Items {
		if lbs.Items[i].DeletionTimestamp != nil {
			continue
		}
		if err := r.client.Delete(ctx, &lbs.Items[i]); client.IgnoreNotFound(err) != nil {
			return false, err
		}
	}
	return len(lbs.Items) > 0, nil
}

// uncached is a client that reads from the API server, without the cache.
type uncached struct {
	client.Client
	reader client.Reader
}

// Get implements client.Reader.
func (u uncached) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	return u.reader.Get(ctx, key, o, options...)
}

func namespaceOf(t *v1alpha1.Tenant) string { return v1alpha1.TenantNamespacePrefix + t.Name }

// ensureNamespace creates the tenant's namespace, and reports whether it did not exist before. It does not change a namespace that is not KubeLB's.
func (r *tenantReconciler) ensureNamespace(ctx context.Context, tenant *v1alpha1.Tenant) (made bool, err error) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceOf(tenant)}}
	result, err := controllerutil.CreateOrUpdate(ctx, r.client, namespace, func() error { return r.setOwner(tenant, namespace) })
	if apierrors.IsAlreadyExists(err) {
		// The cache does not have the namespace: it is new, or does not have the label.
		if err := r.reader.Get(ctx, client.ObjectKeyFromObject(namespace), namespace); err != nil || namespace.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByKubeLB {
			return false, err
		}
		return false, fmt.Errorf("namespace %[1]s exists and is not KubeLB's: give the Tenant another name, or give the namespace to KubeLB: kubectl label namespace %[1]s %[2]s=%[3]s",
			namespace.Name, v1alpha1.LabelManagedBy, v1alpha1.ManagedByKubeLB)
	}
	if err != nil {
		return false, fmt.Errorf("namespace %s: %w", namespace.Name, err)
	}
	return result == controllerutil.OperationResultCreated, nil
}

// ensure creates the missing objects in the tenant's namespace, and returns the condition Ready.
func (r *tenantReconciler) ensure(ctx context.Context, tenant *v1alpha1.Tenant) (metav1.Condition, error) {
	in := metav1.ObjectMeta{Namespace: namespaceOf(tenant), Name: v1alpha1.CCMName}
	account := &corev1.ServiceAccount{ObjectMeta: in}
	if err := r.apply(ctx, tenant, account, func() {}); err != nil {
		return metav1.Condition{}, err
	}
	role := &rbacv1.Role{ObjectMeta: in}
	if err := r.apply(ctx, tenant, role, func() { role.Rules = ccmRules() }); err != nil {
		return metav1.Condition{}, err
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: in}
	err := r.apply(ctx, tenant, binding, func() {
		binding.RoleRef = rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: v1alpha1.CCMName}
		binding.Subjects = []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: in.Namespace, Name: v1alpha1.CCMName}}
	})
	if err != nil {
		return metav1.Condition{}, err
	}
	if err := r.ensureLease(ctx, tenant); err != nil {
		return metav1.Condition{}, err
	}
	return r.ensureCredentials(ctx, tenant, account)
}

// ccmRules are the rights of a CCM: it may write its own requests, and no status.
func ccmRules() []rbacv1.PolicyRule {
	group := []string{v1alpha1.GroupVersion.Group}
	return []rbacv1.PolicyRule{
		{APIGroups: group, Resources: []string{"loadbalancers"}, Verbs: []string{"get", "list", "watch", "create", "update", "delete"}},
		{APIGroups: group, Resources: []string{"addresses"}, Verbs: []string{"get", "list", "watch", "create", "update"}},
		// KubeLB's CCM does not start if it cannot watch these kinds. It cannot create any here. But it sets a finalizer in the tenant cluster before it
		// tries, and removes the finalizer only after it has deleted the object here.
		{APIGroups: group, Resources: []string{"routes", "syncsecrets"}, Verbs: []string{"get", "list", "watch", "delete"}},
		// The CCM renews its token by itself. The policy tokens.kubelb.k8c.io bounds the lifetime.
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{v1alpha1.CCMName}, Verbs: []string{"create"}},
		// The CCM renews its Lease to show that it works. The policy leases.kubelb.k8c.io bounds what it may write.
		{APIGroups: []string{coordinationv1.GroupName}, Resources: []string{"leases"}, ResourceNames: []string{v1alpha1.CCMName}, Verbs: []string{"get", "patch"}},
	}
}

// apply creates or updates an object in the tenant's namespace. change sets its content.
func (r *tenantReconciler) apply(ctx context.Context, tenant *v1alpha1.Tenant, o client.Object, change func()) error {
	_, err := controllerutil.CreateOrUpdate(ctx, uncached{r.client, r.reader}, o, func() error {
		change()
		return r.setOwner(tenant, o)
	})
	if err != nil {
		return fmt.Errorf("%T %s: %w", o, client.ObjectKeyFromObject(o), err)
	}
	return nil
}

// setOwner sets the label and the owner reference of an object of the tenant.
func (r *tenantReconciler) setOwner(tenant *v1alpha1.Tenant, o client.Object) error {
	set := o.GetLabels()
	if set == nil {
		set = map[string]string{}
	}
	set[v1alpha1.LabelManagedBy] = v1alpha1.ManagedByKubeLB
	o.SetLabels(set)
	return controllerutil.SetControllerReference(tenant, o, r.client.Scheme())
}
