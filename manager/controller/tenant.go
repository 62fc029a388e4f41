package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// tenantReconciler makes a tenant's namespace and the credentials of its CCM, and removes them.
type tenantReconciler struct {
	client client.Client
	// server and ca are how CCMs reach the hub's API.
	server string
	ca     []byte
	// reader asks the API server itself, for what is not in the cache.
	reader client.Reader
	// addresses tell what the tenant has.
	addresses *addressBook
	// fences say what may be a target.
	fences *fences
	// gone are gateways that work no more, whatever their objects say.
	gone func(context.Context) (map[string]bool, error)
}

func (r *tenantReconciler) setUp(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("tenant").For(&v1alpha1.Tenant{}).
		Watches(&v1alpha1.LoadBalancer{}, afterBursts(tenantItself)).Watches(&v1alpha1.Addresses{}, afterBursts(tenantItself)).
		Watches(&v1alpha1.Gateway{}, useChanged()).
		Owns(&corev1.Namespace{}).Owns(&corev1.ServiceAccount{}).Owns(&rbacv1.Role{}).Owns(&rbacv1.RoleBinding{}).Owns(&corev1.Secret{}).
		Complete(r)
}

// tenantItself asks for the tenant in whose namespace the object is.
func tenantItself(o client.Object) reconcile.Request {
	name, _ := translate.TenantOf(o.GetNamespace())
	return reconcile.Request{NamespacedName: client.ObjectKey{Name: name}}
}

// Reconcile brings everything of the tenant into being, in the order in which one needs the other.
func (r *tenantReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var tenant v1alpha1.Tenant
	if err := r.client.Get(ctx, req.NamespacedName, &tenant); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if tenant.DeletionTimestamp != nil {
		return r.cleanUp(ctx, &tenant)
	}
	if controllerutil.AddFinalizer(&tenant, v1alpha1.CleanupFinalizer) {
		if err := r.client.Update(ctx, &tenant); err != nil {
			return reconcile.Result{}, err
		}
	}
	if err := r.clear(ctx, namespaceOf(&tenant)); err != nil {
		return reconcile.Result{}, err
	}
	if tenant.Spec.Revoked {
		return reconcile.Result{}, r.revoke(ctx, &tenant)
	}
	ready, err := r.ensure(ctx, &tenant)
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Reconciled", Message: "namespace and credentials are there"}
	phase := v1alpha1.TenantReady
	switch {
	case err != nil:
		phase, condition.Status, condition.Reason, condition.Message = v1alpha1.TenantFailed, metav1.ConditionFalse, "ReconciliationFailed", err.Error()
	case !ready:
		phase, condition.Status, condition.Reason, condition.Message = v1alpha1.TenantPending, metav1.ConditionFalse, "WaitingForToken",
			"the API server's token controller has not filled Secret "+v1alpha1.CCMName+" yet"
	}
	if statusErr := r.setStatus(ctx, &tenant, phase, condition); err == nil {
		err = statusErr
	}
	result := reconcile.Result{}
	if u := tenant.Status.Used; u != nil && (u.ConnectionsPerPort != nil || u.NewConnectionsPerSecondPerPort != nil) {
		result.RequeueAfter = goneFor // nobody says when a gateway has gone that says what is used
	}
	return result, err
}

// revoke removes the credentials. With the ServiceAccount every token of it ends, whoever has one.
func (r *tenantReconciler) revoke(ctx context.Context, tenant *v1alpha1.Tenant) error {
	for name, o := range map[string]client.Object{v1alpha1.CCMName: &corev1.ServiceAccount{}, v1alpha1.CCMKubeconfigSecret: &corev1.Secret{}} {
		o.SetNamespace(namespaceOf(tenant))
		o.SetName(name)
		if err := r.client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("revoke the credentials of Tenant %s: %w", tenant.Name, err)
		}
	}
	return r.setStatus(ctx, tenant, v1alpha1.TenantRevoked, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "Revoked",
		Message: "spec.revoked is set: there are no credentials, and nothing is served"})
}

func (r *tenantReconciler) setStatus(ctx context.Context, tenant *v1alpha1.Tenant, phase string, condition metav1.Condition) error {
	if err := r.addresses.load(ctx); err != nil {
		return err
	}
	before := tenant.Status.DeepCopy()
	var err error
	if tenant.Status.Used, err = r.use(ctx, tenant); err != nil {
		return err
	}
	tenant.Status.ObservedGeneration, tenant.Status.Phase = tenant.Generation, phase
	condition.ObservedGeneration = tenant.Generation
	plain.SetCondition(&tenant.Status.Conditions, condition)
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
		if controllerutil.RemoveFinalizer(tenant, v1alpha1.CleanupFinalizer) {
			return reconcile.Result{}, client.IgnoreNotFound(r.client.Update(ctx, tenant))
		}
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	err = r.setStatus(ctx, tenant, v1alpha1.TenantTerminating, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
		Reason: "Terminating", Message: "namespace " + namespace.Name + " is being deleted"})
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := r.release(ctx, namespace.Name, time.Now()); err != nil {
		return reconcile.Result{}, err
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

// deleteLoadBalancers reports whether some are still there.
func (r *tenantReconciler) deleteLoadBalancers(ctx context.Context, namespace string) (bool, error) {
	var lbs v1alpha1.LoadBalancerList
	if err := r.client.List(ctx, &lbs, client.InNamespace(namespace)); err != nil {
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

// ensure makes what is missing and reports whether the credentials are complete.
func (r *tenantReconciler) ensure(ctx context.Context, tenant *v1alpha1.Tenant) (bool, error) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceOf(tenant)}}
	if err := r.apply(ctx, tenant, namespace, func() {}); err != nil {
		return false, err
	}
	in := metav1.ObjectMeta{Namespace: namespace.Name, Name: v1alpha1.CCMName}
	account := &corev1.ServiceAccount{ObjectMeta: in}
	if err := r.apply(ctx, tenant, account, func() {}); err != nil {
		return false, err
	}
	role := &rbacv1.Role{ObjectMeta: in}
	if err := r.apply(ctx, tenant, role, func() { role.Rules = ccmRules() }); err != nil {
		return false, err
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: in}
	err := r.apply(ctx, tenant, binding, func() {
		binding.RoleRef = rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: v1alpha1.CCMName}
		binding.Subjects = []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace.Name, Name: v1alpha1.CCMName}}
	})
	if err != nil {
		return false, err
	}
	token := &corev1.Secret{ObjectMeta: in, Type: corev1.SecretTypeServiceAccountToken}
	err = r.apply(ctx, tenant, token, func() {
		if token.Annotations == nil {
			token.Annotations = map[string]string{}
		}
		token.Annotations[corev1.ServiceAccountNameKey] = v1alpha1.CCMName
	})
	if err != nil {
		return false, err
	}
	return r.ensureKubeconfig(ctx, tenant, namespace.Name, token.Data[corev1.ServiceAccountTokenKey])
}

// ccmRules is all that a CCM needs: its own wishes, and no status.
func ccmRules() []rbacv1.PolicyRule {
	group := []string{v1alpha1.GroupVersion.Group}
	return []rbacv1.PolicyRule{
		{APIGroups: group, Resources: []string{"loadbalancers"}, Verbs: []string{"get", "list", "watch", "create", "update", "delete"}},
		{APIGroups: group, Resources: []string{"addresses"}, Verbs: []string{"get", "list", "watch", "create", "update"}},
		// KubeLB's CCM watches these, too, or does not start. There never are any.
		{APIGroups: group, Resources: []string{"routes", "syncsecrets"}, Verbs: []string{"get", "list", "watch"}},
	}
}

func (r *tenantReconciler) ensureKubeconfig(ctx context.Context, tenant *v1alpha1.Tenant, namespace string, token []byte) (bool, error) {
	if len(token) == 0 {
		return false, nil
	}
	kubeconfig, err := json.Marshal(clientcmdapi.Config{
		APIVersion: "v1", Kind: "Config", CurrentContext: "kubelb",
		Clusters:  []clientcmdapi.NamedCluster{{Name: "kubelb", Cluster: clientcmdapi.Cluster{Server: r.server, CertificateAuthorityData: r.ca}}},
		AuthInfos: []clientcmdapi.NamedAuthInfo{{Name: "kubelb", AuthInfo: clientcmdapi.AuthInfo{Token: string(token)}}},
		Contexts:  []clientcmdapi.NamedContext{{Name: "kubelb", Context: clientcmdapi.Context{Cluster: "kubelb", AuthInfo: "kubelb", Namespace: namespace}}},
	})
	if err != nil {
		return false, err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.CCMKubeconfigSecret}}
	err = r.apply(ctx, tenant, secret, func() { secret.Data = map[string][]byte{v1alpha1.CCMKubeconfigKey: kubeconfig} })
	return err == nil, err
}

// apply creates or updates an object that belongs to the tenant.
func (r *tenantReconciler) apply(ctx context.Context, tenant *v1alpha1.Tenant, o client.Object, change func()) error {
	complete := func() error {
		change()
		set := o.GetLabels()
		if set == nil {
			set = map[string]string{}
		}
		set[v1alpha1.LabelManagedBy] = v1alpha1.ManagedByKubeLB
		o.SetLabels(set)
		return controllerutil.SetControllerReference(tenant, o, r.client.Scheme())
	}
	_, err := controllerutil.CreateOrUpdate(ctx, r.client, o, complete)
	if apierrors.IsAlreadyExists(err) {
		// It is there without the label by which the cache would know of it.
		_, err = controllerutil.CreateOrUpdate(ctx, uncached{r.client, r.reader}, o, complete)
	}
	if err != nil {
		return fmt.Errorf("%T %s: %w", o, client.ObjectKeyFromObject(o), err)
	}
	return nil
}
