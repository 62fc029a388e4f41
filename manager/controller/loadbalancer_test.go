package controller

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/faults"
	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
)

// Each write of a LoadBalancer is a new version, to which gateways respond by writing their status. This has to end.
func TestTheStatusOfAPartlyRefusedLoadBalancerBecomesStable(t *testing.T) {
	for name, refuses := range map[string][]string{"all refuse it": {"a", "b", "c"}, "one serves it": {"a", "c"}} {
		t.Run(name, func(t *testing.T) {
			lb := recorded("web", 0)
			lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
				Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
			tenant := &v1alpha1.Tenant{}
			tenant.Name = "a"
			var gateways []v1alpha1.Gateway
			for _, name := range []string{"a", "b", "c"} {
				g := v1alpha1.Gateway{}
				if g.Name = name; slices.Contains(refuses, name) {
					g.Status.Failures = []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/web", Record: "frontend", Message: "not supported"}}
				}
				gateways = append(gateways, g)
			}
			scheme := schemeOf(t, coordinationv1.AddToScheme)
			c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(public(), tenant, lb).WithStatusSubresource(&v1alpha1.LoadBalancer{}).
				WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
					if all, is := list.(*v1alpha1.GatewayList); is {
						// A cache lists in any order.
						all.Items = slices.Concat(gateways[1:], gateways[:1])
						gateways = slices.Clone(all.Items)
						return nil
					}
					return c.List(ctx, list, options...)
				}}).Build()
			r := reconcilerOf(t, c)
			key := client.ObjectKeyFromObject(lb)
			seen := func() string {
				require.NoError(t, c.Get(t.Context(), key, lb))
				return lb.ResourceVersion
			}
			before := ""
			for range 20 {
				before = seen()
				_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
				require.NoError(t, err)
				for i := range gateways {
					gateways[i].Status.AppliedResourceVersion, gateways[i].Status.AnnouncedResourceVersion = before, before
				}
			}
			require.Equal(t, before, seen(), "the status is written again and again: %v", lb.Status.Conditions)
			require.Equal(t, len(refuses) < 3, meta.IsStatusConditionTrue(lb.Status.Conditions, v1alpha1.ConditionReady), "%v", lb.Status.Conditions)
		})
	}
}

// In the tenant cluster, kube-proxy serves an address with ipMode VIP itself, and leaves an address with ipMode Proxy to the gateways.
func TestTheIPModeFollowsTheForwardingMode(t *testing.T) {
	for _, c := range []struct {
		forwarding, proxyProtocol string
		want                      corev1.LoadBalancerIPMode
	}{
		{"", "", corev1.LoadBalancerIPModeProxy},
		{"nat", "", corev1.LoadBalancerIPModeProxy},
		{"nat", "v2", corev1.LoadBalancerIPModeProxy},
		{"transparent", "", corev1.LoadBalancerIPModeVIP},
		{"transparent", "v2", corev1.LoadBalancerIPModeProxy},
		{"direct", "", corev1.LoadBalancerIPModeVIP},
	} {
		lb := recorded("web", 0, "203.0.113.1", "2001:db8::1")
		lb.Annotations = map[string]string{v1alpha1.AnnotationForwarding: c.forwarding, v1alpha1.AnnotationProxyProtocol: c.proxyProtocol}
		for _, ingress := range ingressOf(lb, convert.LoadBalancer(lb)).Ingress {
			require.Equal(t, c.want, *ingress.IPMode, "forwarding %q, PROXY protocol %q, %s", c.forwarding, c.proxyProtocol, ingress.IP)
		}
	}
}

func TestTheSummaryHasAllAddressesAndPorts(t *testing.T) {
	lb := recorded("web", 0, "203.0.113.1", "2001:db8::1")
	lb.Spec.Ports = []v1alpha1.LoadBalancerPort{{Port: 80}, {Port: 443, Protocol: corev1.ProtocolTCP}, {Port: 443, Protocol: corev1.ProtocolUDP}}
	require.Equal(t, &v1alpha1.LoadBalancerSummary{Addresses: "203.0.113.1,2001:db8::1", Ports: "80/TCP,443/TCP,443/UDP"}, summaryOf(lb))
}

func TestFinalizersOfKubeLBsManagerAreRemoved(t *testing.T) {
	at := metav1.Now()
	lb := recorded("web", 0)
	lb.DeletionTimestamp = &at
	lb.Finalizers = []string{v1alpha1.CleanupFinalizer, "kubelb.k8c.io/cleanup-hostname", "kubelb.k8c.io/cleanup-envoy-proxy"}
	c := fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithObjects(lb).WithStatusSubresource(&v1alpha1.LoadBalancer{}).Build()
	r := reconcilerOf(t, c)
	_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(lb)})
	require.NoError(t, err)
	require.True(t, apierrors.IsNotFound(c.Get(t.Context(), client.ObjectKeyFromObject(lb), lb)), "%v", lb.Finalizers)
}

func reconcilerOf(t *testing.T, c client.Client) *loadBalancerReconciler {
	t.Helper()
	numbers, err := newMetrics(nil)
	require.NoError(t, err)
	allocator := &addressAllocator{reader: c}
	return &loadBalancerReconciler{client: c, reader: c, events: events.NewFakeRecorder(100), addresses: allocator, filter: &targetFilter{client: c, addresses: allocator}, metrics: numbers, poolsChanged: make(chan event.GenericEvent, 1),
		waiting: waiting{gateway: map[client.ObjectKey]string{}, address: map[client.ObjectKey]bool{}}, throttle: newStatusThrottle()}
}

func TestAnAddressIsReallocatedAfterGatewaysHaveWithdrawnIt(t *testing.T) {
	wants := func(name, address string, onRecord ...string) *v1alpha1.LoadBalancer {
		lb := recorded(name, 0, onRecord...)
		lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, RequestedAddresses: []string{address}, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
			Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
		return lb
	}
	tenant := &v1alpha1.Tenant{}
	tenant.Name = "a"
	gateway := &v1alpha1.Gateway{Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "1"}}
	gateway.Name = "g"
	objects := []client.Object{public(), tenant, gateway, wants("moves", "203.0.113.5", "203.0.113.1"), wants("waits", "203.0.113.1")}
	scheme := schemeOf(t, coordinationv1.AddToScheme)
	fails := false
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.LoadBalancer{}).
		WithInterceptorFuncs(interceptor.Funcs{SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, o client.Object, options ...client.SubResourceUpdateOption) error {
			if fails {
				return errors.New("the API server is away")
			}
			return c.SubResource(sub).Update(ctx, o, options...)
		}}).Build()
	r := reconcilerOf(t, c)
	reconcileIt := func(name string) error {
		_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "tenant-a", Name: name}})
		return err
	}
	has := func(name string) (addresses []string, reason string) {
		var lb v1alpha1.LoadBalancer
		require.NoError(t, c.Get(t.Context(), client.ObjectKey{Namespace: "tenant-a", Name: name}, &lb))
		for _, a := range lb.Status.Addresses {
			addresses = append(addresses, a.Address)
		}
		if allocated := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionAddressAllocated); allocated != nil {
			reason = allocated.Reason
		}
		return addresses, reason
	}
	for _, name := range []string{"moves", "waits"} {
		require.NoError(t, reconcileIt(name), "the finalizer")
	}
	fails = true
	require.Error(t, reconcileIt("moves"))
	fails = false
	require.NoError(t, reconcileIt("waits"))
	addresses, reason := has("waits")
	require.Empty(t, addresses)
	require.Equal(t, "AddressInUse", reason)
	require.Empty(t, r.poolsChanged)

	require.NoError(t, reconcileIt("moves"))
	addresses, _ = has("moves")
	require.Equal(t, []string{"203.0.113.5"}, addresses)
	require.NoError(t, reconcileIt("waits"))
	addresses, _ = has("waits")
	require.Empty(t, addresses, "the gateway serves the other one there still")
	require.Empty(t, r.poolsChanged)

	gateway.Status.AppliedResourceVersion = "1000000"
	require.NoError(t, c.Update(t.Context(), gateway))
	require.NoError(t, reconcileIt("moves"))
	require.Len(t, r.poolsChanged, 1, "who waits is woken up")
	require.NoError(t, reconcileIt("waits"))
	addresses, _ = has("waits")
	require.Equal(t, []string{"203.0.113.1"}, addresses)
}

func TestAnAddressConflictIsInTheStatusOfTheLoadBalancer(t *testing.T) {
	lb, other := recorded("web", 0, "203.0.113.1"), recorded("other", 0, "203.0.113.2")
	for _, lb := range []*v1alpha1.LoadBalancer{lb, other} {
		lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
			Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
	}
	tenant, gateway := &v1alpha1.Tenant{}, &v1alpha1.Gateway{Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "1000000", AnnouncedResourceVersion: "1000000"}}
	tenant.Name, gateway.Name = "a", "g"
	gateway.Status.Conflicts = []v1alpha1.AddressConflict{{Address: "203.0.113.1", MAC: "02:00:00:00:00:09"}}
	scheme := schemeOf(t, coordinationv1.AddToScheme)
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(public(), tenant, gateway, lb, other).WithStatusSubresource(&v1alpha1.LoadBalancer{}).Build()
	r := reconcilerOf(t, c)
	key := client.ObjectKeyFromObject(lb)
	says := func() metav1.Condition {
		for range 3 { // the finalizer, the allocation, the reports of gateways
			_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
			require.NoError(t, err)
		}
		require.NoError(t, c.Get(t.Context(), key, lb))
		return *meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
	}
	require.Equal(t, []reconcile.Request{{NamespacedName: key}}, r.conflicting(t.Context(), gateway))
	ready := says()
	require.Equal(t, metav1.ConditionTrue, ready.Status)
	require.Equal(t, v1alpha1.ReasonAddressConflict, ready.Reason)
	require.Contains(t, ready.Message, "served, but: another host on the gateways' segment also answers for 203.0.113.1")
	require.NotContains(t, ready.Message, "02:00", "a tenant does not see the hub's hosts")
	recorder := r.events.(*events.FakeRecorder)
	require.Contains(t, <-recorder.Events, "Warning AddressConflict another host")
	require.Empty(t, recorder.Events, "once")

	gateway.Status.Conflicts = nil
	require.NoError(t, c.Update(t.Context(), gateway))
	require.Empty(t, r.conflicting(t.Context(), gateway))
	require.Equal(t, "Ready", says().Reason)
	require.Equal(t, []string{"Normal Ready served again"}, drained(r))
}

func TestAStatusIsWrittenHoweverLongTheTenantsTextIs(t *testing.T) {
	lb := recorded("web", 0)
	c := conditions{lb: lb}
	c.accept([]translate.Problem{{Reason: translate.ReasonEndpointRefused, Partial: true, Message: "left out: \x1b[31m" + strings.Repeat("x", 1<<20)}})
	accepted := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionAccepted)
	require.LessOrEqual(t, len(accepted.Message), plain.MaxCondition)
	require.Regexp(t, `^left out: \\u001b\[31mx+\.\.\. \(\d+ bytes more\)$`, accepted.Message)
}

// An address that is not announced to any router any more is not served.
func TestALoadBalancerThatIsNotAnnouncedAnyMoreIsNotReady(t *testing.T) {
	lb := recorded("web", 0)
	lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
		Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
	tenant, gateway := &v1alpha1.Tenant{}, &v1alpha1.Gateway{Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "1000000", AnnouncedResourceVersion: "1000000"}}
	tenant.Name, gateway.Name = "a", "g"
	c := fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithObjects(public(), tenant, lb, gateway).WithStatusSubresource(&v1alpha1.LoadBalancer{}).Build()
	r, key := reconcilerOf(t, c), client.ObjectKeyFromObject(lb)
	condition := func(kind string) metav1.Condition {
		t.Helper()
		for range 4 {
			_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
			require.NoError(t, err)
		}
		require.NoError(t, c.Get(t.Context(), key, lb))
		return *meta.FindStatusCondition(lb.Status.Conditions, kind)
	}
	require.Equal(t, metav1.ConditionTrue, condition(v1alpha1.ConditionReady).Status)
	before := gateway.DeepCopy()
	gateway.Status.Silent = []v1alpha1.GatewaySilence{{Family: corev1.IPv4Protocol, Message: "BGPPeer tor (192.0.2.254): connection refused at port 179"}}
	require.True(t, announcementChanges(before, gateway), "all LoadBalancers are reconciled")
	require.NoError(t, c.Update(t.Context(), gateway))
	for _, kind := range []string{v1alpha1.ConditionAnnounced, v1alpha1.ConditionReady} {
		is := condition(kind)
		require.Equal(t, metav1.ConditionFalse, is.Status, kind)
		require.Equal(t, "NotAnnounced", is.Reason)
		require.Contains(t, is.Message, lb.Status.Addresses[0].Address+" is not announced: gateway g: BGPPeer tor (192.0.2.254): connection refused")
	}
	require.NotEmpty(t, lb.Status.LoadBalancer.Ingress, "the Service keeps its address")
	require.Contains(t, strings.Join(drained(r), "\n"), "NotAnnounced", "there is an event")
	gateway.Status.Silent, gateway.Status.AnnouncedResourceVersion = nil, ""
	require.NoError(t, c.Update(t.Context(), gateway))
	require.Equal(t, "WaitingForAnnouncement", condition(v1alpha1.ConditionReady).Reason)
	require.Empty(t, drained(r), "the fault is not over yet")
	gateway.Status.AnnouncedResourceVersion = "1000000"
	require.NoError(t, c.Update(t.Context(), gateway))
	require.Equal(t, metav1.ConditionTrue, condition(v1alpha1.ConditionReady).Status)
	require.Equal(t, []string{"Normal Ready served again"}, drained(r))
	lb.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	require.NoError(t, c.Update(t.Context(), lb))
	require.Equal(t, metav1.ConditionTrue, condition(v1alpha1.ConditionReady).Status)
	require.Empty(t, drained(r), "a change of the spec is no fault")
}

// Tries show more than the gateway's report about its dataplane.
func TestFailedTriesAreInTheStatusOfTheLoadBalancer(t *testing.T) {
	lb := recorded("web", 0)
	lb.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
		Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
	tenant, gateway := &v1alpha1.Tenant{}, &v1alpha1.Gateway{Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "1000000", AnnouncedResourceVersion: "1000000", AnnouncedAddresses: 1}}
	tenant.Name, gateway.Name = "a", "g"
	c := fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithObjects(public(), tenant, lb, gateway).WithStatusSubresource(&v1alpha1.LoadBalancer{}).Build()
	r, key := reconcilerOf(t, c), client.ObjectKeyFromObject(lb)
	says := func(change func(*v1alpha1.GatewayStatus)) (served *metav1.Condition, ready metav1.Condition) {
		t.Helper()
		change(&gateway.Status)
		require.NoError(t, c.Update(t.Context(), gateway))
		for range 4 {
			_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
			require.NoError(t, err)
		}
		require.NoError(t, c.Get(t.Context(), key, lb))
		require.NotEmpty(t, lb.Status.LoadBalancer.Ingress, "the Service keeps its address")
		return meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionServed), *meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
	}
	tries := func(tries *v1alpha1.GatewayTries) func(*v1alpha1.GatewayStatus) {
		return func(s *v1alpha1.GatewayStatus) { s.Tries = tries }
	}
	for name, well := range map[string]func(*v1alpha1.GatewayStatus){"nothing is tried": tries(nil), "what is tried answers": tries(&v1alpha1.GatewayTries{Answered: 1})} {
		served, ready := says(well)
		require.Nil(t, served, name)
		require.Equal(t, metav1.ConditionTrue, ready.Status, name)
	}
	require.Empty(t, drained(r), "to be served for the first time is no recovery")

	named := &v1alpha1.GatewayTries{Failing: 1, Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/web", Record: "frontend TCP 203.0.113.1:80", Message: "connections get no answer"}}}
	served, ready := says(tries(named))
	const message = "gateway g: frontend TCP 203.0.113.1:80: connections get no answer"
	require.Equal(t, metav1.ConditionFalse, served.Status)
	require.Equal(t, []string{v1alpha1.ReasonConnectionsFail, message}, []string{ready.Reason, ready.Message})
	require.Equal(t, metav1.ConditionFalse, ready.Status)
	require.Len(t, drained(r), 1, "there is one event")
	require.Contains(t, failing(gateway), reconcile.Request{NamespacedName: key}, "the LoadBalancer is reconciled after a change")

	served, _ = says(tries(&v1alpha1.GatewayTries{Failing: 9, Unlisted: []string{"tenant-a"}}))
	require.Contains(t, served.Message, "this one may be among them")
	require.Contains(t, r.possiblyFailing(t.Context(), gateway), reconcile.Request{NamespacedName: key})

	before := gateway.DeepCopy()
	served, ready = says(func(s *v1alpha1.GatewayStatus) {
		s.Tries = &v1alpha1.GatewayTries{}
		s.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonSegmentSilent, Message: "nobody answers"}}
	})
	require.Equal(t, v1alpha1.ReasonSegmentSilent, served.Reason)
	require.Equal(t, "gateway g: nobody answers", ready.Message)
	require.True(t, announcementChanges(before, gateway), "all LoadBalancers are reconciled")

	served, ready = says(func(s *v1alpha1.GatewayStatus) { s.Conditions = nil })
	require.Nil(t, served)
	require.Equal(t, metav1.ConditionTrue, ready.Status)
	told := drained(r)
	require.Equal(t, "Normal Ready served again", told[len(told)-1])

	says(tries(named))
	r.faults = faults.Tracker{}
	drained(r)
	says(tries(&v1alpha1.GatewayTries{Answered: 1}))
	require.Equal(t, []string{"Normal Ready served again"}, drained(r), "a new process knows the fault from the status")
}

// A draining gateway whose dataplane hangs does not affect connections to another gateway.
func TestAGatewayThatServesNothingCountsForItsAddresses(t *testing.T) {
	lb := recorded("web", 0)
	lb.Status.Addresses = []v1alpha1.AllocatedAddress{{Address: "203.0.113.1", Pool: "public"}}
	silent := metav1.Condition{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDataplaneSilent, Message: "it hangs"}
	gateway := func(name string, elects bool, announced int32, candidates []string, conditions ...metav1.Condition) v1alpha1.Gateway {
		return v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{Elects: elects, AnnouncedAddresses: announced, Candidates: candidates, Conditions: conditions,
			AppliedResourceVersion: "1000000", AnnouncedResourceVersion: "1000000"}}
	}
	broken := func(gateways ...v1alpha1.Gateway) []string { return viewOf(gateways, nil, nil, lb).broken }
	well := gateway("b", false, 1, nil)
	answers, drained := gateway("a", false, 1, nil, silent), gateway("a", false, 0, nil, silent)
	require.Equal(t, []string{"gateway a: it hangs"}, broken(answers, well))
	require.Empty(t, broken(drained, well))
	require.True(t, announcementChanges(&answers, &drained), "all LoadBalancers are reconciled")

	answers, drained = gateway("a", true, 1, []string{"a"}, silent), gateway("a", true, 0, []string{"b"}, silent)
	require.Equal(t, []string{"gateway a: it hangs"}, broken(answers, gateway("b", true, 0, []string{"a"})))
	require.Empty(t, broken(drained, gateway("b", true, 1, []string{"b"})))
	require.True(t, announcementChanges(&answers, &drained), "all LoadBalancers are reconciled")
	before, after := gateway("b", true, 1, []string{"a", "b"}), gateway("b", true, 2, []string{"b"})
	require.False(t, announcementChanges(&before, &after))
}

// drained returns the events so far.
func drained(r *loadBalancerReconciler) (all []string) {
	for {
		select {
		case e := <-r.events.(*events.FakeRecorder).Events:
			all = append(all, e)
		default:
			return all
		}
	}
}
