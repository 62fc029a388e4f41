package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// tenantHub is an API server that issues tokens, and a reconciler of its Tenants.
type tenantHub struct {
	client.Client
	r *tenantReconciler
	// tokens is the number of requested tokens; refusal is the error to return instead.
	tokens  int
	refusal error
}

func newTenantHub(t *testing.T, lifetime time.Duration, objects ...client.Object) *tenantHub {
	scheme := schemeOf(t, coordinationv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme, authenticationv1.AddToScheme)
	h := &tenantHub{}
	h.Client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.Tenant{}).
		WithIndex(&coordinationv1.Lease{}, metav1.ObjectNameField, func(o client.Object) []string { return []string{o.GetName()} }).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.CreateOption) error {
			o.SetUID(types.UID(fmt.Sprintf("uid-%s-%d", o.GetName(), time.Now().UnixNano())))
			return c.Create(ctx, o, options...)
		},
		SubResourceCreate: func(_ context.Context, _ client.Client, name string, o client.Object, sub client.Object, _ ...client.SubResourceCreateOption) error {
			require.Equal(t, "token", name)
			require.Equal(t, v1alpha1.CCMName, o.GetName())
			if h.refusal != nil {
				return h.refusal
			}
			h.tokens++
			request := sub.(*authenticationv1.TokenRequest)
			request.Status = authenticationv1.TokenRequestStatus{Token: fmt.Sprintf("token-%d-of-%s", h.tokens, o.GetUID()),
				ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Duration(*request.Spec.ExpirationSeconds) * time.Second))}
			return nil
		},
	}).Build()
	h.r = &tenantReconciler{client: h.Client, reader: h.Client, addresses: &addressAllocator{reader: h.Client},
		credentials: credentials{server: "https://hub.example.com:6443", lifetime: lifetime}}
	return h
}

// look checks the tenant, whenever the last check was.
func (h *tenantHub) look(t *testing.T) *v1alpha1.Tenant {
	t.Helper()
	clear(h.r.checked.byTenant)
	for range 2 {
		_, err := h.r.Reconcile(t.Context(), requestFor("a"))
		require.NoError(t, err)
	}
	var tenant v1alpha1.Tenant
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Name: "a"}, &tenant))
	return &tenant
}

func (h *tenantHub) kubeconfig(t *testing.T) *corev1.Secret {
	t.Helper()
	var secret corev1.Secret
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMKubeconfigSecret}, &secret))
	return &secret
}

func requestFor(tenant string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: tenant}}
}

func tenantA() *v1alpha1.Tenant {
	return &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "uid"}}
}

func TestANamespaceThatIsNotKubeLBsIsNotChanged(t *testing.T) {
	there := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tenant-a", Labels: map[string]string{"team": "shop"}}}
	h := newTenantHub(t, time.Hour, tenantA(), there)
	// A cache has only objects with the label.
	h.r.client = uncached{h.Client, fake.NewClientBuilder().WithScheme(h.Scheme()).Build()}
	_, err := h.r.ensureNamespace(t.Context(), tenantA())
	require.ErrorContains(t, err, "give the namespace to KubeLB: kubectl label namespace tenant-a kubelb.k8c.io/managed-by=kubelb")
	there.Labels[v1alpha1.LabelManagedBy] = v1alpha1.ManagedByKubeLB
	require.NoError(t, h.Update(t.Context(), there))
	_, err = h.r.ensureNamespace(t.Context(), tenantA())
	require.NoError(t, err, "it was handed over, and the cache lags")
}

// KubeLB's CCM sets a finalizer before it creates a SyncSecret here, and removes the finalizer only after it has deleted the object here.
func TestATenantsCCMMayDeleteKindsThatItCannotCreate(t *testing.T) {
	for _, rule := range ccmRules() {
		if slices.Contains(rule.Resources, "syncsecrets") {
			require.Equal(t, []string{"routes", "syncsecrets"}, rule.Resources)
			require.Equal(t, []string{"get", "list", "watch", "delete"}, rule.Verbs)
			return
		}
	}
	t.Fatal("there is no such rule")
}

func TestATenantsTokenIsRenewedInTheSecondHalfOfItsLifetime(t *testing.T) {
	h := newTenantHub(t, time.Hour, tenantA())
	require.Equal(t, v1alpha1.TenantReady, h.look(t).Status.Phase)
	for _, o := range []client.Object{&corev1.ServiceAccount{}, &rbacv1.Role{}, &rbacv1.RoleBinding{}, &coordinationv1.Lease{}} {
		require.NoError(t, h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, o))
		require.Equal(t, v1alpha1.ManagedByKubeLB, o.GetLabels()[v1alpha1.LabelManagedBy], "%T", o)
	}
	require.True(t, apierrors.IsNotFound(h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, &corev1.Secret{})), "there is no token without end")
	first := tokenOf(h.kubeconfig(t))
	require.Contains(t, first, "token-1-of-uid-")
	h.look(t)
	require.Equal(t, first, tokenOf(h.kubeconfig(t)))

	expiresIn := func(d time.Duration) {
		secret := h.kubeconfig(t)
		secret.Annotations[v1alpha1.AnnotationTokenExpires] = time.Now().Add(d).UTC().Format(time.RFC3339)
		require.NoError(t, h.Update(t.Context(), secret))
		h.look(t)
	}
	expiresIn(31 * time.Minute)
	require.Equal(t, 1, h.tokens)
	expiresIn(29 * time.Minute)
	require.Equal(t, 2, h.tokens)
	expiresIn(24 * time.Hour)
	require.Equal(t, 3, h.tokens, "one that lasts for longer than is set now")

	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: v1alpha1.CCMName}}
	require.NoError(t, h.Delete(t.Context(), account))
	h.look(t)
	require.Equal(t, 4, h.tokens, "those of the former account work no more")
	require.NoError(t, h.Delete(t.Context(), h.kubeconfig(t)))
	h.look(t)
	require.Equal(t, 5, h.tokens)
}

func TestATenantWithoutATokenHasTheReason(t *testing.T) {
	h := newTenantHub(t, time.Hour, tenantA())
	h.refusal = apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts/token"}, v1alpha1.CCMName, errors.New("no such right"))
	_, err := h.r.Reconcile(t.Context(), requestFor("a"))
	require.ErrorIs(t, err, h.refusal)
	var tenant v1alpha1.Tenant
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Name: "a"}, &tenant))
	require.Equal(t, v1alpha1.TenantFailed, tenant.Status.Phase)
	require.Len(t, tenant.Status.Conditions, 1)
	ready := tenant.Status.Conditions[0]
	require.Equal(t, v1alpha1.ConditionReady, ready.Type)
	require.Equal(t, metav1.ConditionFalse, ready.Status)
	require.Contains(t, ready.Message, "token for ServiceAccount tenant-a/kubelb-ccm")
	h.refusal = nil
	require.Equal(t, v1alpha1.TenantReady, h.look(t).Status.Phase)
}

func TestATenantIsCheckedPeriodicallyAndAfterChanges(t *testing.T) {
	h := newTenantHub(t, time.Hour, tenantA())
	h.r.trial.at = time.Now().Add(time.Hour) // this API server counts no objects, and the next trial would be another reconcile
	h.look(t)
	result, err := h.r.Reconcile(t.Context(), requestFor("a"))
	require.NoError(t, err)
	require.InDelta(t, 5*time.Minute, result.RequeueAfter, float64(10*time.Second))
	require.NoError(t, h.Delete(t.Context(), h.kubeconfig(t)))
	_, err = h.r.Reconcile(t.Context(), requestFor("a"))
	require.NoError(t, err)
	require.Equal(t, 1, h.tokens, "frequent changes cause no check")
	tenant := h.look(t)
	require.Equal(t, 2, h.tokens)
	tenant.Annotations = map[string]string{v1alpha1.AnnotationRotated: "now"}
	require.NoError(t, h.Update(t.Context(), tenant))
	require.NoError(t, h.Delete(t.Context(), h.kubeconfig(t)))
	_, err = h.r.Reconcile(t.Context(), requestFor("a"))
	require.NoError(t, err)
	require.Equal(t, 3, h.tokens)
}

func TestATokenWithoutExpiryIsDeletedWhenNobodyUsesIt(t *testing.T) {
	lasting := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: v1alpha1.CCMName, CreationTimestamp: metav1.NewTime(time.Now().Add(-30 * 24 * time.Hour)),
		Labels: map[string]string{lastUsedLabel: time.Now().UTC().Format(time.DateOnly)}}, Type: corev1.SecretTypeServiceAccountToken}
	h := newTenantHub(t, time.Hour, tenantA(), lasting)
	ready := h.look(t).Status.Conditions[0]
	require.Equal(t, metav1.ConditionTrue, ready.Status)
	require.Equal(t, "LastingToken", ready.Reason)
	require.Contains(t, ready.Message, "kubelb tenants rotate a")
	require.Contains(t, tokenOf(h.kubeconfig(t)), "token-1-of-", "who fetches a kubeconfig gets one that expires")
	lasting.Labels[lastUsedLabel] = time.Now().UTC().AddDate(0, 0, -4).Format(time.DateOnly)
	require.NoError(t, h.Update(t.Context(), lasting))
	require.Equal(t, "Reconciled", h.look(t).Status.Conditions[0].Reason)
	require.True(t, apierrors.IsNotFound(h.Get(t.Context(), client.ObjectKeyFromObject(lasting), lasting)))
}

func TestTokensDoNotExpireIfTheOperatorWantsSo(t *testing.T) {
	h := newTenantHub(t, 0, tenantA())
	require.Equal(t, "WaitingForToken", h.look(t).Status.Conditions[0].Reason)
	var token corev1.Secret
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, &token))
	require.Equal(t, v1alpha1.CCMName, token.Annotations[corev1.ServiceAccountNameKey])
	var account corev1.ServiceAccount
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.CCMName}, &account))
	// Like the API server's token controller.
	token.Annotations[corev1.ServiceAccountUIDKey], token.Data = string(account.UID), map[string][]byte{corev1.ServiceAccountTokenKey: []byte("for-ever")}
	require.NoError(t, h.Update(t.Context(), &token))
	require.Equal(t, v1alpha1.TenantReady, h.look(t).Status.Phase)
	require.Equal(t, "for-ever", tokenOf(h.kubeconfig(t)))
	require.Zero(t, h.tokens)
	// The ServiceAccount was replaced, and the token controller has not deleted the Secret yet.
	require.NoError(t, h.Delete(t.Context(), &account))
	require.Equal(t, "WaitingForToken", h.look(t).Status.Conditions[0].Reason)
}

func TestARevokedTenantHasNoCredentials(t *testing.T) {
	h := newTenantHub(t, time.Hour, tenantA())
	tenant := h.look(t)
	tenant.Spec.Revoked = true
	require.NoError(t, h.Update(t.Context(), tenant))
	require.Equal(t, v1alpha1.TenantRevoked, h.look(t).Status.Phase)
	for name, o := range map[string]client.Object{v1alpha1.CCMName: &corev1.ServiceAccount{}, v1alpha1.CCMKubeconfigSecret: &corev1.Secret{}} {
		require.True(t, apierrors.IsNotFound(h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: name}, o)), name)
	}
}

func TestTheManagerFirstBindsItsRightsInATenantsNamespace(t *testing.T) {
	h := newTenantHub(t, time.Hour, tenantA())
	h.r.self = &types.NamespacedName{Namespace: "kubelb", Name: "kubelb-manager"}
	h.look(t)
	var binding rbacv1.RoleBinding
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: "kubelb-manager"}, &binding))
	require.Equal(t, rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "kubelb-tenant-namespace"}, binding.RoleRef)
	require.Equal(t, []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kubelb", Name: "kubelb-manager"}}, binding.Subjects)
}

// The former condition does not stay on a tenant whose objects were not checked.
func TestBoundedIsUnknownWhileATenantHasFailed(t *testing.T) {
	tenant := tenantA()
	tenant.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBounded, Status: metav1.ConditionTrue, Reason: "Counted"}}
	there := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tenant-a", Labels: map[string]string{"team": "shop"}}}
	h := newTenantHub(t, time.Hour, tenant, there)
	h.r.client = interceptor.NewClient(h.Client.(client.WithWatch), interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, options ...client.GetOption) error {
		if _, is := o.(*corev1.Namespace); is {
			return errors.New("etcd is full")
		}
		return c.Get(ctx, key, o, options...)
	}})
	_, err := h.r.Reconcile(t.Context(), requestFor("a"))
	require.Error(t, err)
	var is v1alpha1.Tenant
	require.NoError(t, h.Get(t.Context(), client.ObjectKey{Name: "a"}, &is))
	require.Equal(t, v1alpha1.TenantFailed, is.Status.Phase)
	require.Equal(t, metav1.ConditionUnknown, meta.FindStatusCondition(is.Status.Conditions, v1alpha1.ConditionBounded).Status)
}

// One worker for each tenant, so that the race detector finds shared state.
func TestTenantsAreReconciledConcurrently(t *testing.T) {
	const tenants = 2 * tenantWorkers
	var objects []client.Object
	for i := range tenants {
		objects = append(objects, &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i))}})
	}
	h := newTenantHub(t, 0, objects...)
	var met sync.WaitGroup
	met.Add(tenants)
	h.r.client = interceptor.NewClient(h.Client.(client.WithWatch), interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.CreateOption) error {
		if _, is := o.(*corev1.Namespace); is { // each worker waits for all others, as for a slow API server
			met.Done()
			met.Wait()
		}
		return c.Create(ctx, o, options...)
	}})
	h.r.namespace = "kubelb"
	h.r.filter = &targetFilter{client: h.Client, addresses: h.r.addresses}
	require.Greater(t, tenantWorkers, 1)
	var all errgroup.Group
	for i := range tenants {
		all.Go(func() error {
			for range 2 {
				if _, err := h.r.Reconcile(t.Context(), requestFor(fmt.Sprint(i))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, all.Wait())
}
