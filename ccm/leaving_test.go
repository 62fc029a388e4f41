package ccm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/api/v1alpha1"
)

// served returns a Service with an address from the management cluster.
func served(name string, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid-of-web", Finalizers: []string{cleanupFinalizer}},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}}},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}},
			Conditions: []metav1.Condition{{Type: conditionReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "served"}}}}
	if change != nil {
		change(s)
	}
	return s
}

func reconcilerOf(t *testing.T, tenant, hub client.Client) (*serviceReconciler, *events.FakeRecorder) {
	t.Helper()
	recorder := events.NewFakeRecorder(100)
	return &serviceReconciler{tenant: tenant, hub: hub, events: recorder, config: Config{HubNamespace: "tenant-a"}, nodes: newNodesProblem(), contact: newHubContact(time.Now())}, recorder
}

func clusterOf(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	scheme, err := newScheme()
	require.NoError(t, err)
	require.NoError(t, coordinationv1.AddToScheme(scheme))
	return fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&corev1.Service{}).WithObjects(objects...).Build()
}

func get(t *testing.T, c client.Client, s *corev1.Service) *corev1.Service {
	t.Helper()
	var is corev1.Service
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(s), &is))
	return &is
}

// The management cluster has deleted the LoadBalancer and refuses a new one: another tenant may get the address soon.
func TestAServiceOfADeletedTenantLosesItsAddress(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "loadbalancers"}, "uid-of-web", errors.New("because it is being terminated"))
	forbidden.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	away := errors.New("connection refused")
	for name, c := range map[string]struct {
		answer error
		there  bool
		keeps  bool
		says   string
	}{
		"its namespace is being deleted":             {answer: forbidden, says: "does not serve this tenant any more"},
		"its namespace is gone":                      {answer: apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "tenant-a"), says: "does not serve this tenant any more"},
		"the API is away":                            {answer: away, keeps: true, says: "connection refused"},
		"what is there cannot be brought up to date": {answer: forbidden, there: true, keeps: true, says: "did not accept"},
	} {
		t.Run(name, func(t *testing.T) {
			web := served("web", nil)
			tenant := clusterOf(t, web)
			var onHub []client.Object
			if c.there {
				onHub = append(onHub, &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "uid-of-web",
					Labels: map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: "web"}}})
			}
			hub := interceptor.NewClient(clusterOf(t, onHub...).(client.WithWatch), interceptor.Funcs{
				Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return c.answer },
				Update: func(context.Context, client.WithWatch, client.Object, ...client.UpdateOption) error {
					return errors.New("forbidden")
				}})
			r, recorder := reconcilerOf(t, tenant, hub)
			_, err := r.ensure(t.Context(), get(t, tenant, web))
			require.Error(t, err, "the error causes a retry")
			is := get(t, tenant, web)
			require.Equal(t, c.keeps, len(is.Status.LoadBalancer.Ingress) > 0)
			condition := meta.FindStatusCondition(is.Status.Conditions, conditionReady)
			require.Equal(t, "HubRefused", condition.Reason)
			require.Contains(t, condition.Message, c.says)
			require.Contains(t, all(recorder), "SyncLoadBalancerFailed")
		})
	}
}

func all(r *events.FakeRecorder) string {
	var out []string
	for {
		select {
		case e := <-r.Events:
			out = append(out, e)
		default:
			return strings.Join(out, "\n")
		}
	}
}

// The controllers do not start while the management cluster refuses their requests, as after the deletion of the Tenant and a restart of the CCM.
func TestTheConditionOfAServiceThatWaitsForTheHubHasTheReason(t *testing.T) {
	now := metav1.Now()
	leaves := served("leaves", func(s *corev1.Service) { s.DeletionTimestamp = &now })
	changed := served("changed", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	fresh := served("fresh", func(s *corev1.Service) { s.Status = corev1.ServiceStatus{} })
	goesOn, others := served("goes-on", nil), served("others", func(s *corev1.Service) {
		class := "example.com/lb"
		s.DeletionTimestamp, s.Spec.LoadBalancerClass, s.Status = &now, &class, corev1.ServiceStatus{}
	})
	tenant := clusterOf(t, leaves, changed, fresh, goesOn, others)
	r, recorder := reconcilerOf(t, tenant, nil)
	refused := &outageReporter{services: r, checkHub: func(context.Context) error {
		return errors.New("the credentials have expired, or were rotated or revoked")
	}}
	refused.check(t.Context())
	require.Empty(t, all(recorder), "once is no time")
	refused.check(t.Context())
	said := all(recorder)
	require.Equal(t, 4, strings.Count(said, "SyncLoadBalancerFailed"), said)
	refused.check(t.Context())
	require.Empty(t, all(recorder), "there is one event")
	for s, says := range map[*corev1.Service]string{leaves: "kubelb-ccm --release", changed: "kubelb-ccm --release", fresh: "the Service waits for an address"} {
		condition := meta.FindStatusCondition(get(t, tenant, s).Status.Conditions, conditionReady)
		require.Equal(t, "HubRefused", condition.Reason, s.Name)
		require.Contains(t, condition.Message, says)
		require.Contains(t, condition.Message, "the credentials have expired")
	}
	is := get(t, tenant, goesOn)
	require.Len(t, is.Status.LoadBalancer.Ingress, 1, "its traffic goes on")
	condition := meta.FindStatusCondition(is.Status.Conditions, conditionReady)
	require.Equal(t, metav1.ConditionUnknown, condition.Status)
	require.Regexp(t, "^the management cluster has not answered since .*Z: the credentials have expired, or were rotated or revoked. Before that, the condition was: served$", condition.Message)
	require.Empty(t, get(t, tenant, others).Status.Conditions)
}

func TestReleaseRemovesFinalizersConditionsAndAddresses(t *testing.T) {
	now, class := metav1.Now(), "example.com/lb"
	leaves, stays := served("leaves", func(s *corev1.Service) { s.DeletionTimestamp = &now }), served("stays", nil)
	others := served("others", func(s *corev1.Service) { s.Spec.LoadBalancerClass, s.Status.Conditions = &class, nil })
	c := clusterOf(t, leaves, stays, others)
	var out strings.Builder
	require.NoError(t, release(t.Context(), c, Config{}, &out))
	require.Equal(t, "Service shop/leaves is released.\nService shop/stays is released.\n", out.String())
	var gone corev1.Service
	require.True(t, apierrors.IsNotFound(c.Get(t.Context(), client.ObjectKeyFromObject(leaves), &gone)))
	is := get(t, c, stays)
	require.Empty(t, is.Finalizers)
	require.Empty(t, is.Status.LoadBalancer.Ingress)
	require.Empty(t, is.Status.Conditions)
	require.NotEmpty(t, get(t, c, others).Finalizers, "another controller's")
}

// electionLease returns the Lease of a CCM that is or was elected, renewed at a time of its host's clock.
func electionLease(renewed time.Time) *coordinationv1.Lease {
	holder, seconds, at := "node_1", int32(15), metav1.NewMicroTime(renewed)
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: v1alpha1.CCMLease},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &at}}
}

func TestReleaseRefusesWhileACCMRunsWhateverTheClocksSay(t *testing.T) {
	for name, off := range map[string]time.Duration{"right": 0, "a day ahead": 24 * time.Hour, "a day behind": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stays := served("stays", nil)
				lease := electionLease(time.Now().Add(off))
				c := clusterOf(t, stays, lease)
				time.AfterFunc(14*time.Second, func() {
					at := metav1.NewMicroTime(time.Now().Add(off))
					lease.Spec.RenewTime = &at
					_ = c.Update(t.Context(), lease)
				})
				var out strings.Builder
				require.EqualError(t, release(t.Context(), c, Config{}, &out), "kubelb-ccm runs as node_1: stop it first (Lease kubelb/"+v1alpha1.CCMLease+")")
				require.Equal(t, "kubelb-ccm has run as node_1 (Lease kubelb/"+v1alpha1.CCMLease+"). Waiting 15s to see whether it still renews this Lease.\n", out.String())
				require.NotEmpty(t, get(t, c, stays).Finalizers)
			})
		})
	}
}

func TestReleaseWaitsForTheDurationOfTheLease(t *testing.T) {
	for name, c := range map[string]struct {
		off   time.Duration
		after func(*coordinationv1.LeaseSpec)
		waits time.Duration
	}{
		"the clock of this host is right":        {off: -time.Second, waits: 16 * time.Second},
		"the clock of this host is a day behind": {off: 24 * time.Hour, waits: 16 * time.Second},
		"the CCM gives the Lease back":           {after: func(s *coordinationv1.LeaseSpec) { *s.HolderIdentity = "" }, waits: 6 * time.Second},
		"the Lease has a duration of years":      {after: func(*coordinationv1.LeaseSpec) {}, waits: longestLease},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lease := electionLease(time.Now().Add(c.off))
				if c.waits == longestLease {
					*lease.Spec.LeaseDurationSeconds = 1 << 30
				}
				cluster := clusterOf(t, served("stays", nil), lease)
				if c.after != nil {
					time.AfterFunc(5*time.Second, func() {
						c.after(&lease.Spec)
						_ = cluster.Update(t.Context(), lease)
					})
				}
				began := time.Now()
				var out strings.Builder
				require.NoError(t, release(t.Context(), cluster, Config{}, &out))
				require.Equal(t, c.waits, time.Since(began))
				require.Contains(t, out.String(), "Service shop/stays is released.\n")
			})
		})
	}
}
