package controller

import (
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/membership"
)

// leaseOf returns a gateway's Lease that was renewed at a time.
func leaseOf(name string, renewed time.Time) *coordinationv1.Lease {
	at, seconds := metav1.NewMicroTime(renewed), int32(1)
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: name, Labels: map[string]string{membership.Label: name}},
		Spec: coordinationv1.LeaseSpec{RenewTime: &at, LeaseDurationSeconds: &seconds}}
}

// workingGateway returns a gateway that has applied and announced everything, and has a session with a router.
func workingGateway(name string) *v1alpha1.Gateway {
	is := func(kind string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "InSync"}
	}
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "1000000", AnnouncedResourceVersion: "1000000",
		Conditions: []metav1.Condition{is(v1alpha1.ConditionReady), is(v1alpha1.ConditionBGPEstablished)}}}
}

// gatewayTest is a hub with gateways, a LoadBalancer, and a monitor of the gateways.
type gatewayTest struct {
	t   *testing.T
	hub client.Client
	r   *loadBalancerReconciler
	now time.Time
}

func absenceOf(t *testing.T, gateways ...string) *gatewayTest {
	t.Helper()
	lb, tenant := recorded("web", 0), &v1alpha1.Tenant{}
	lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
		Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
	tenant.Name = "a"
	a := &gatewayTest{t: t, now: time.Now()}
	objects := []client.Object{public(), tenant, lb}
	for _, name := range gateways {
		objects = append(objects, workingGateway(name), leaseOf(name, a.now))
	}
	a.hub = fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.LoadBalancer{}, &v1alpha1.Gateway{}).Build()
	a.r = reconcilerOf(t, a.hub)
	a.begin()
	return a
}

// begin starts a new process of the controllers.
func (a *gatewayTest) begin() {
	a.r.gatewaysSilent = make(chan event.GenericEvent, 1)
	a.r.gateways = &gatewayMonitor{client: a.hub, reader: a.hub, namespace: "kubelb", changed: a.r.gatewaysSilent, log: logr.Discard()}
}

// after lets time pass, in which some gateways renew their Leases.
func (a *gatewayTest) after(passed time.Duration, renewing ...string) {
	a.t.Helper()
	a.now = a.now.Add(passed)
	for _, name := range renewing {
		lease := leaseOf(name, a.now)
		require.NoError(a.t, a.hub.Get(a.t.Context(), client.ObjectKeyFromObject(lease), lease))
		lease.Spec.RenewTime = &metav1.MicroTime{Time: a.now}
		require.NoError(a.t, a.hub.Update(a.t.Context(), lease))
	}
	require.NoError(a.t, a.r.gateways.check(a.t.Context(), a.now))
}

func (a *gatewayTest) condition(kind string) metav1.Condition {
	a.t.Helper()
	var lb v1alpha1.LoadBalancer
	key := client.ObjectKey{Namespace: "tenant-a", Name: "web"}
	for range 4 {
		_, err := a.r.Reconcile(a.t.Context(), reconcile.Request{NamespacedName: key})
		require.NoError(a.t, err)
	}
	require.NoError(a.t, a.hub.Get(a.t.Context(), key, &lb))
	require.NotEmpty(a.t, lb.Status.LoadBalancer.Ingress, "the Service keeps its address")
	return *meta.FindStatusCondition(lb.Status.Conditions, kind)
}

func (a *gatewayTest) gateway(name, kind string) metav1.Condition {
	a.t.Helper()
	var g v1alpha1.Gateway
	require.NoError(a.t, a.hub.Get(a.t.Context(), client.ObjectKey{Name: name}, &g))
	return *meta.FindStatusCondition(g.Status.Conditions, kind)
}

// A gateway whose host has crashed cannot report that, so its last status is not valid any more.
func TestTheStatusOfASilentGatewayIsUnknown(t *testing.T) {
	a := absenceOf(t, "g1")
	a.after(0)
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status)
	a.after(10 * time.Second)
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status, "it may be a moment")
	require.Empty(t, a.r.gatewaysSilent)
	a.after(7 * time.Second)
	require.Len(t, a.r.gatewaysSilent, 1, "all LoadBalancers are reconciled")
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionBGPEstablished} {
		is := a.gateway("g1", kind)
		require.Equal(t, metav1.ConditionUnknown, is.Status, kind)
		require.Contains(t, is.Message, "the gateway has not renewed its Lease since "+a.now.Add(-17*time.Second).UTC().Format(time.RFC3339))
	}
	for _, kind := range []string{v1alpha1.ConditionProgrammed, v1alpha1.ConditionAnnounced, v1alpha1.ConditionReady} {
		is := a.condition(kind)
		require.Equal(t, metav1.ConditionUnknown, is.Status, kind)
		require.Equal(t, "GatewaySilent", is.Reason)
		require.Contains(t, is.Message, "gateway g1: the gateway has not renewed its Lease since ")
	}
	require.Contains(t, drained(a.r)[0], "GatewaySilent", "there is an event")

	a.begin()
	a.after(time.Hour)
	require.Equal(t, metav1.ConditionUnknown, a.condition(v1alpha1.ConditionReady).Status, "other controllers know no better")

	a.after(time.Second, "g1")
	var g v1alpha1.Gateway
	require.NoError(t, a.hub.Get(t.Context(), client.ObjectKey{Name: "g1"}, &g))
	g.Status = workingGateway("g1").Status
	require.NoError(t, a.hub.Status().Update(t.Context(), &g))
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status, "the gateway is back")
	a.after(time.Second)
	require.Equal(t, metav1.ConditionTrue, a.gateway("g1", v1alpha1.ConditionReady).Status)
}

func TestASilentGatewayDoesNotHideOthers(t *testing.T) {
	a := absenceOf(t, "g1", "g2")
	a.after(0)
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status)
	a.after(20*time.Second, "g2")
	require.Equal(t, metav1.ConditionUnknown, a.gateway("g1", v1alpha1.ConditionReady).Status)
	require.Equal(t, metav1.ConditionTrue, a.gateway("g2", v1alpha1.ConditionReady).Status)
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status, "the other one announces it")

	var g v1alpha1.Gateway
	require.NoError(t, a.hub.Get(t.Context(), client.ObjectKey{Name: "g2"}, &g))
	g.Status.AppliedResourceVersion, g.Status.AnnouncedResourceVersion = "1", "1"
	require.NoError(t, a.hub.Status().Update(t.Context(), &g))
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status, "the gateway is about to apply the present version")
	require.NoError(t, a.hub.Get(t.Context(), client.ObjectKey{Name: "g2"}, &g))
	meta.SetStatusCondition(&g.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "BackendFailed", Message: "no nf_tables"})
	require.NoError(t, a.hub.Status().Update(t.Context(), &g))
	is := a.condition(v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionUnknown, is.Status, "no working gateway holds the LoadBalancer")
	require.Contains(t, is.Message, "gateway g2: no nf_tables")
}

// A Lease that is renewed seldom does not mean that the gateway is gone.
func TestAGatewayIsNotSilentBeforeItsLeaseExpires(t *testing.T) {
	lease, now := leaseOf("g1", time.Now().Add(-5*time.Minute)), time.Now()
	seconds := int32(600)
	lease.Spec.LeaseDurationSeconds = &seconds
	c := fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithObjects(lease).Build()
	gone, err := goneGateways(t.Context(), c, "kubelb")
	require.NoError(t, err)
	require.Empty(t, gone)
	ago, _, _ := membership.LastRenewal(lease, now)
	require.Less(t, ago, membership.MaxRenewalAge(lease, membership.SilentAfter))
}

// The API was unavailable for the gateways and for the controllers.
func TestGatewaysHaveAGracePeriodAfterAnOutageOfTheAPI(t *testing.T) {
	a := absenceOf(t, "g1")
	a.after(0)
	a.begin()
	a.after(10 * time.Minute)
	require.Equal(t, metav1.ConditionTrue, a.gateway("g1", v1alpha1.ConditionReady).Status)
	a.after(time.Second, "g1")
	a.after(10 * time.Second)
	require.Equal(t, metav1.ConditionTrue, a.gateway("g1", v1alpha1.ConditionReady).Status)
	a.begin()
	a.after(10 * time.Minute)
	a.after(6 * time.Second)
	require.Equal(t, metav1.ConditionUnknown, a.gateway("g1", v1alpha1.ConditionReady).Status, "it does not come back")
}

// Without gateways, no dataplane holds anything.
func TestWithoutGatewaysNothingIsProgrammed(t *testing.T) {
	a := absenceOf(t, "g1")
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionProgrammed).Status)
	require.NoError(t, a.hub.Delete(t.Context(), workingGateway("g1")))
	is := a.condition(v1alpha1.ConditionProgrammed)
	require.Equal(t, metav1.ConditionFalse, is.Status)
	require.Equal(t, "NoGateway", is.Reason)
}

// A gateway that renews its Lease and cannot write its object works, but the status of its object is out of date.
func TestTheStatusOfAGatewayThatCannotWriteItIsUnknown(t *testing.T) {
	a := absenceOf(t, "g1")
	a.after(0)
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status)
	says := func(annotations map[string]string) {
		var lease coordinationv1.Lease
		require.NoError(t, a.hub.Get(t.Context(), client.ObjectKey{Namespace: "kubelb", Name: "g1"}, &lease))
		lease.Annotations = annotations
		require.NoError(t, a.hub.Update(t.Context(), &lease))
		a.after(time.Second, "g1")
	}
	says(map[string]string{"kubelb.k8c.io/unwritten": "status.failures: too many"})
	for _, is := range []metav1.Condition{a.gateway("g1", v1alpha1.ConditionReady), a.condition(v1alpha1.ConditionReady)} {
		require.Equal(t, metav1.ConditionUnknown, is.Status)
		require.Contains(t, is.Message, "the gateway cannot write its Gateway object, whose status is out of date: status.failures: too many")
	}
	says(nil)
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status)
}
