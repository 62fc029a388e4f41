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

// tenantReconciler makes a tenant's namespace and the credentials of its CCM, and removes them.
type tenantReconciler struct {
	client client.Client
	// reader asks the API server itself. What is in tenants' namespaces beside LoadBalancers and Addresses is read by it: to watch Secrets is to
	// read those of all namespaces.
	reader client.Reader
	// credentials of the CCMs.
	credentials credentials
	// self is the account that the manager has to give its rights in each tenant's namespace; nil if it has them already.
	self *types.NamespacedName
	// looked is what was found right, and when, by the tenant's name.
	looked looks
	// addresses tell what the tenant has.
	addresses *addressBook
	// fences say what may be a target.
	fences *fences
	// presence tells of which gateways nothing is heard, whatever their objects say.
	presence *presence
	// contacts tell whether the tenant's CCM is heard; told is asked for the tenants of which they say something else than before.
	contacts *contacts
	told     <-chan event.GenericEvent
	// namespace is the manager's own, where it is tried whether objects are counted.
	namespace string
	trial     trial
}

func (r *tenantReconciler) setUp(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("tenant").For(&v1alpha1.Tenant{}).
		Watches(&v1alpha1.LoadBalancer{}, afterBursts(tenantItself)).Watches(&v1alpha1.Addresses{}, afterBursts(tenantItself)).
		Watches(&v1alpha1.Gateway{}, useChanged()).
		WatchesRawSource(source.Channel(r.told, &handler.EnqueueRequestForObject{})).
		Owns(&corev1.Namespace{}).
		// A tenant waits in line once, whatever it changes, so that tenants take turns by themselves. Workers overlap while they wait for the API server.
		WithOptions(controller.Options{MaxConcurrentReconciles: tenantWorkers}).
		Complete(r)
}

// tenantWorkers is how many tenants are looked at at the same time.
const tenantWorkers = 4

// tenantItself asks for the tenant in whose namespace the object is.
func tenantItself(o client.Object) reconcile.Request {
	name, _ := translate.TenantOf(o.GetNamespace())
	return reconcile.Request{NamespacedName: client.ObjectKey{Name: name}}
}

// Reconcile implements reconcile.Reconciler.
func (r *tenantReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := r.reconcile(ctx, req)
	return unlessConflict(ctx, result, err)
}

// reconcile brings everything of the tenant into being, in the order in which one needs the other.
func (r *tenantReconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var tenant v1alpha1.Tenant
	if err := r.client.Get(ctx, req.NamespacedName, &tenant); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if tenant.DeletionTimestamp != nil {
		result, err := r.cleanUp(ctx, &tenant)
		if err != nil && !apierrors.IsConflict(err) {
			err = errors.Join(err, r.setStatus(ctx, &tenant, v1alpha1.TenantTerminating, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
				Reason: "Terminating", Message: "it cannot be deleted yet: " + err.Error()}))
		}
		return result, err
	}
	if before := tenant.DeepCopy(); controllerutil.AddFinalizer(&tenant, v1alpha1.CleanupFinalizer) {
		if err := patch(ctx, r.client, &tenant, before); err != nil {
			return reconcile.Result{}, err
		}
	}
	if err := r.clear(ctx, namespaceOf(&tenant)); err != nil {
		return reconcile.Result{}, err
	}
	if tenant.Spec.Revoked {
		return r.revoke(ctx, &tenant)
	}
	left, condition, err := r.keep(ctx, &tenant)
	if apierrors.IsConflict(err) {
		return reconcile.Result{}, err // nothing has failed that a status should name
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
		bounded, again, boundErr := r.bound(ctx, &tenant, time.Now())
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
			Message: "whether the management cluster counts the tenant's objects is not looked at before the Tenant is Ready"})
	}
	if statusErr := r.setStatus(ctx, &tenant, phase, conditions...); err == nil {
		err = statusErr
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if u := tenant.Status.Used; u != nil && (u.ConnectionsPerPort != nil || u.NewConnectionsPerSecondPerPort != nil) {
		left = min(left, goneFor) // nobody tells this controller when a gateway has gone that says what is used
	}
	return reconcile.Result{RequeueAfter: left}, nil
}

// look is a time at which all of a tenant was right, and what was asked for then.
type look struct {
	at         time.Time
	generation int64
	rotated    string
	condition  metav1.Condition
}

// looks are the last ones at tenants. They are shared by the controller's workers.
type looks struct {
	mu sync.Mutex // guards of
	of map[string]look
}

func (l *looks) get(tenant string) (look, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	is, known := l.of[tenant]
	return is, known
}

func (l *looks) set(tenant string, is look) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string]look{}
	}
	l.of[tenant] = is
}

func (l *looks) forget(tenant string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.of, tenant)
}

// keep has the tenant's namespace and credentials be there. What is in the namespace is not watched: it is looked at now and then, and when
// the Tenant has changed. It returns when to look again.
func (r *tenantReconciler) keep(ctx context.Context, tenant *v1alpha1.Tenant) (time.Duration, metav1.Condition, error) {
	failed := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	made, err := r.ensureNamespace(ctx, tenant)
	if err != nil {
		return 0, failed, err
	}
	every := r.credentials.lookEvery()
	now, rotated := time.Now(), tenant.Annotations[v1alpha1.AnnotationRotated]
	if before, is := r.looked.get(tenant.Name); is && !made && before.generation == tenant.Generation && before.rotated == rotated && now.Before(before.at.Add(every)) {
		return before.at.Add(every).Sub(now), before.condition, nil
	}
	r.looked.forget(tenant.Name)
	fresh, err := r.enter(ctx, tenant)
	if err != nil {
		return 0, failed, err
	}
	condition, err := r.ensure(ctx, tenant)
	switch {
	case apierrors.IsForbidden(err) && fresh:
		// The API server's authorizer has not heard of the binding yet.
		condition = metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "WaitingForRights",
			Message: "the manager has just got its rights in namespace " + namespaceOf(tenant)}
		return soon, condition, nil
	case err != nil:
		return 0, failed, err
	case condition.Status != metav1.ConditionTrue:
		return soon, condition, nil
	}
	r.looked.set(tenant.Name, look{at: now, generation: tenant.Generation, rotated: rotated, condition: condition})
	return every, condition, nil
}

// soon is when to look again after what takes a moment.
const soon = 200 * time.Millisecond

// enter gives the manager its rights in the tenant's namespace, and reports whether it has got them not long ago.
func (r *tenantReconciler) enter(ctx context.Context, tenant *v1alpha1.Tenant) (bool, error) {
	if r.self == nil {
		return false, nil
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(tenant), Name: ownBinding}}
	err := r.apply(ctx, tenant, binding, func() {
		binding.RoleRef = rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: namespaceRole}
		binding.Subjects = []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: r.self.Namespace, Name: r.self.Name}}
	})
	return time.Since(binding.CreationTimestamp.Time) < rightsSpread, err
}

const (
	// ownBinding and namespaceRole are by which the manager has its rights in a tenant's namespace. The chart makes the role, and the
	// policy manager.kubelb.k8c.io knows both.
	ownBinding, namespaceRole = "kubelb-manager", "kubelb-tenant-namespace"
	// rightsSpread is in what time each of several API servers surely knows of a binding. Times of creation are in whole seconds.
	rightsSpread = 10 * time.Second
)

// revoke removes the credentials. With the ServiceAccount every token of it ends, whoever has one.
func (r *tenantReconciler) revoke(ctx context.Context, tenant *v1alpha1.Tenant) (reconcile.Result, error) {
	r.looked.forget(tenant.Name)
	if err := r.removeCredentials(ctx, tenant); err != nil {
		err = fmt.Errorf("revoke the credentials of Tenant %s: %w", tenant.Name, err)
		if apierrors.IsConflict(err) {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, errors.Join(err, r.setStatus(ctx, tenant, v1alpha1.TenantFailed, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
			Reason: "ReconciliationFailed", Message: err.Error()}))
	}
	return reconcile.Result{}, r.setStatus(ctx, tenant, v1alpha1.TenantRevoked, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "Revoked",
		Message: "spec.revoked is set: there are no credentials, and nothing is served"})
}

func (r *tenantReconciler) removeCredentials(ctx context.Context, tenant *v1alpha1.Tenant) error {
	var namespace corev1.Namespace
	if err := r.client.Get(ctx, client.ObjectKey{Name: namespaceOf(tenant)}, &namespace); err != nil {
		return client.IgnoreNotFound(err)
	}
	if _, err := r.enter(ctx, tenant); err != nil {
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
	if tenant.Status.Used, err = r.use(ctx, tenant); err != nil {
		return err
	}
	tenant.Status.ObservedGeneration, tenant.Status.Phase = tenant.Generation, phase
	for _, condition := range conditions {
		condition.ObservedGeneration = tenant.Generation
		plain.SetCondition(&tenant.Status.Conditions, condition)
	}
	r.contacts.say(tenant)
	if equality.Semantic.DeepEqual(before, &tenant.Status) {
		return nil
	}
	return r.client.Status().Update(ctx, tenant)
}

// cleanUp deletes first the LoadBalancers, which gateways must let go of, then the namespace, then lets the Tenant go.
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
		Reason: "Terminating", Message: phrase.Few(append([]string{"namespace " + namespace.Name + " is being deleted"}, remains(namespace)...), "; ")})
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := r.release(ctx, namespace.Name, time.Now()); err != nil {
		return reconcile.Result{}, err
	}
	r.addresses.prolong(namespace.Name, time.Now())
	r.looked.forget(tenant.Name)
	if namespace.DeletionTimestamp == nil {
		if _, err := r.enter(ctx, tenant); err != nil {
			return reconcile.Result{}, err
		}
	}
	if left, err := r.deleteLoadBalancers(ctx, namespace.Name); err != nil || left {
		// The namespace controller would wait for many seconds before it looks at finalizers again.
		return reconcile.Result{RequeueAfter: 200 * time.Millisecond}, err
	}
	if namespace.DeletionTimestamp == nil {
		if err := r.client.Delete(ctx, namespace); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	// What is left in it goes by the namespace controller, and is looked at again until it has.
	return reconcile.Result{RequeueAfter: releaseEvery}, nil
}

// remains is why a namespace that is being deleted is there still, as the namespace controller says.
func remains(namespace *corev1.Namespace) (why []string) {
	for _, c := range namespace.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			why = append(why, c.Message)
		}
	}
	return why
}

// deleteLoadBalancers reports whether some are still there.
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

// uncached is a client that reads from the API server itself.
type uncached struct {
	client.Client
	reader client.Reader
}

// Get implements client.Reader.
func (u uncached) Get(ctx context.Context, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
	return u.reader.Get(ctx, key, o, options...)
}

func namespaceOf(t *v1alpha1.Tenant) string { return v1alpha1.TenantNamespacePrefix + t.Name }

// ensureNamespace reports whether it was made just now. A namespace of that name that is not KubeLB's is left alone.
func (r *tenantReconciler) ensureNamespace(ctx context.Context, tenant *v1alpha1.Tenant) (made bool, err error) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceOf(tenant)}}
	result, err := controllerutil.CreateOrUpdate(ctx, r.client, namespace, func() error { return r.belongs(tenant, namespace) })
	if apierrors.IsAlreadyExists(err) {
		// The cache does not know of it: it was made a moment ago, or has not the label.
		if err := r.reader.Get(ctx, client.ObjectKeyFromObject(namespace), namespace); err != nil || namespace.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByKubeLB {
			return false, err
		}
		return false, fmt.Errorf("namespace %[1]s is there and is not KubeLB's: give the Tenant another name, or hand the namespace over: kubectl label namespace %[1]s %[2]s=%[3]s",
			namespace.Name, v1alpha1.LabelManagedBy, v1alpha1.ManagedByKubeLB)
	}
	if err != nil {
		return false, fmt.Errorf("namespace %s: %w", namespace.Name, err)
	}
	return result == controllerutil.OperationResultCreated, nil
}

// ensure makes what is missing in the tenant's namespace, and says whether the credentials are complete.
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

// ccmRules is all that a CCM needs: its own wishes, and no status.
func ccmRules() []rbacv1.PolicyRule {
	group := []string{v1alpha1.GroupVersion.Group}
	return []rbacv1.PolicyRule{
		{APIGroups: group, Resources: []string{"loadbalancers"}, Verbs: []string{"get", "list", "watch", "create", "update", "delete"}},
		{APIGroups: group, Resources: []string{"addresses"}, Verbs: []string{"get", "list", "watch", "create", "update"}},
		// KubeLB's CCM watches these, too, or does not start. It cannot make any; but it sets a finalizer in the tenant cluster before it tries, and
		// removes that only after it has deleted here.
		{APIGroups: group, Resources: []string{"routes", "syncsecrets"}, Verbs: []string{"get", "list", "watch", "delete"}},
		// It renews its token by itself. For how long one may last the policy tokens.kubelb.k8c.io says.
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{v1alpha1.CCMName}, Verbs: []string{"create"}},
		// It renews its Lease, so that it is known to be there. What it may write there the policy leases.kubelb.k8c.io says.
		{APIGroups: []string{coordinationv1.GroupName}, Resources: []string{"leases"}, ResourceNames: []string{v1alpha1.CCMName}, Verbs: []string{"get", "patch"}},
	}
}

// apply creates or updates an object in the tenant's namespace that belongs to the tenant.
func (r *tenantReconciler) apply(ctx context.Context, tenant *v1alpha1.Tenant, o client.Object, change func()) error {
	_, err := controllerutil.CreateOrUpdate(ctx, uncached{r.client, r.reader}, o, func() error {
		change()
		return r.belongs(tenant, o)
	})
	if err != nil {
		return fmt.Errorf("%T %s: %w", o, client.ObjectKeyFromObject(o), err)
	}
	return nil
}

// belongs marks an object as made for the tenant.
func (r *tenantReconciler) belongs(tenant *v1alpha1.Tenant, o client.Object) error {
	set := o.GetLabels()
	if set == nil {
		set = map[string]string{}
	}
	set[v1alpha1.LabelManagedBy] = v1alpha1.ManagedByKubeLB
	o.SetLabels(set)
	return controllerutil.SetControllerReference(tenant, o, r.client.Scheme())
}
