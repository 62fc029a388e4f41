package controller

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/membership"
)

// schemeOf returns a scheme with KubeLB's kinds and others.
func schemeOf(t require.TestingT, others ...func(*runtime.Scheme) error) *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range append(others, v1alpha1.AddToScheme) {
		require.NoError(t, add(scheme))
	}
	return scheme
}

// Address plan: AddressPool public 203.0.113.0/29 (.1 to .6 usable).
func allocatorOf(t *testing.T, objects ...client.Object) *addressAllocator {
	t.Helper()
	scheme := schemeOf(t)
	return &addressAllocator{reader: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()}
}

func public() *v1alpha1.AddressPool {
	return &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "public"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"203.0.113.0/29"}}}
}

func recorded(name string, age time.Duration, addresses ...string) *v1alpha1.LoadBalancer {
	lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Unix(1000000, 0).Add(-age))}}
	for _, a := range addresses {
		lb.Status.Addresses = append(lb.Status.Addresses, v1alpha1.AllocatedAddress{Address: a, Pool: "public"})
	}
	return lb
}

func ofTenantA(name string) translate.LoadBalancer {
	return translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: name}, Type: "LoadBalancer"}
}

func allocate(t *testing.T, allocator *addressAllocator, name string) []string {
	t.Helper()
	a := allocator.allocate(ofTenantA(name), nil, ipam.Limits{}, false)
	require.Nil(t, a.refusal)
	var out []string
	for _, g := range a.addresses {
		out = append(out, g.Address.String())
	}
	return out
}

func TestAllocationsInStatusesAreReadBeforeTheFirstAllocation(t *testing.T) {
	allocator := allocatorOf(t, public(), recorded("one", 0, "203.0.113.1"), recorded("two", 0, "203.0.113.2"))
	require.NoError(t, allocator.load(t.Context()))
	require.Equal(t, []string{"203.0.113.3"}, allocate(t, allocator, "new"))
	require.Equal(t, []string{"203.0.113.1"}, allocate(t, allocator, "one"), "a restart changes no address")
}

func TestTheOlderLoadBalancerKeepsADuplicateAddress(t *testing.T) {
	elsewhere := recorded("old", time.Hour, "203.0.113.1")
	elsewhere.Namespace = "tenant-b"
	allocator := allocatorOf(t, public(), recorded("young", 0, "203.0.113.1"), elsewhere)
	require.NoError(t, allocator.load(t.Context()))
	require.Equal(t, []string{"203.0.113.2"}, allocate(t, allocator, "young"))
	require.Equal(t, "203.0.113.1", allocator.allocator.AllocationsOf("tenant-b/old")[0].Address.String())
}

func refresh(t *testing.T, allocator *addressAllocator, pool *v1alpha1.AddressPool) bool {
	t.Helper()
	differs, err := allocator.refresh(t.Context(), []v1alpha1.AddressPool{*pool})
	require.NoError(t, err)
	return differs
}

func TestAddressesOfARepairedPoolAreAllocated(t *testing.T) {
	allocator := allocatorOf(t)
	require.NoError(t, allocator.load(t.Context()))
	require.Equal(t, ipam.NoMatchingPool, allocator.allocate(ofTenantA("web"), nil, ipam.Limits{}, false).refusal.Reason)
	bad := public()
	bad.Spec.Addresses = []string{"203.0.113.9-203.0.113.1"}
	require.False(t, refresh(t, allocator, bad))
	require.Contains(t, allocator.bad["public"].Message, "203.0.113.9-203.0.113.1")
	require.True(t, refresh(t, allocator, public()))
	require.Equal(t, []string{"203.0.113.1"}, allocate(t, allocator, "web"))
}

func TestAReturnedAddressIsNotReallocatedBeforeItsRemovalIsConfirmed(t *testing.T) {
	allocator := allocatorOf(t, public(), recorded("web", 0, "203.0.113.1"))
	require.NoError(t, allocator.load(t.Context()))
	allocated := func(address string) ipam.Allocation {
		return ipam.Allocation{Address: netip.MustParseAddr(address), Pool: "public"}
	}
	moves, wants := ofTenantA("web"), ofTenantA("other")
	moves.Requested, wants.Requested = []netip.Addr{netip.MustParseAddr("203.0.113.5")}, []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	move := func(onRecord string) allocation {
		a := allocator.allocate(moves, []ipam.Allocation{allocated(onRecord)}, ipam.Limits{}, false)
		require.Equal(t, []ipam.Allocation{allocated("203.0.113.5")}, a.addresses)
		require.True(t, a.freed, "others may wait for what it had")
		return a
	}
	ask := func() *ipam.Refusal { return allocator.allocate(wants, nil, ipam.Limits{}, false).refusal }
	for _, onRecord := range []string{"203.0.113.1", "203.0.113.1", "203.0.113.5"} {
		move(onRecord)
		require.NotNil(t, ask())
	}
	moves.Requested[0] = netip.MustParseAddr("192.0.2.1")
	a := allocator.allocate(moves, []ipam.Allocation{allocated("203.0.113.1")}, ipam.Limits{}, false)
	require.NotNil(t, a.refusal)
	require.Equal(t, []ipam.Allocation{allocated("203.0.113.1")}, a.addresses, "only the recorded allocation")
	moves.Requested[0] = netip.MustParseAddr("203.0.113.5")
	allocator.confirm("tenant-a/web", move("203.0.113.1"))
	require.Nil(t, ask())
	require.Equal(t, []ipam.Allocation{allocated("203.0.113.5")}, allocator.allocator.AllocationsOf("tenant-a/web"))
}

// webAt10 is tenant-a/web with an address of each family.
func webAt10() *v1alpha1.LoadBalancer {
	return &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "web", ResourceVersion: "10"},
		Status: v1alpha1.LoadBalancerStatus{Addresses: []v1alpha1.AllocatedAddress{{Address: "203.0.113.1"}, {Address: "2001:db8:f::1"}}}}
}

func TestALoadBalancerIsAnnouncedWhenEachOfItsAddressesIs(t *testing.T) {
	both := []string{"a", "b"}
	winner := election.Winner(netip.MustParseAddr("203.0.113.1"), both, nil)
	var gateways []v1alpha1.Gateway
	for _, name := range both {
		gateways = append(gateways, v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{
			Elects: true, Candidates: both, AppliedResourceVersion: "10", AnnouncedResourceVersion: "10"}})
	}
	require.True(t, viewOf(gateways, nil, nil, webAt10()).announced)
	require.False(t, viewOf([]v1alpha1.Gateway{{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Status: v1alpha1.GatewayStatus{Elects: true, AppliedResourceVersion: "10", AnnouncedResourceVersion: "10"}}},
		nil, nil, webAt10()).announced, "there is no candidate")
	for i := range gateways {
		if gateways[i].Name == winner {
			gateways[i].Status.AnnouncedResourceVersion = "9"
		}
	}
	view := viewOf(gateways, nil, nil, webAt10())
	require.True(t, view.applied)
	require.False(t, view.announced, "the other one does not answer for that address")
}

// The gateway that announces lags behind one that does not.
func TestTheGenerationOfReadyIsThatOfTheAnnouncingGateway(t *testing.T) {
	lb := webAt10()
	lb.Generation = 2
	c := &conditions{lb: lb}
	c.set(v1alpha1.ConditionAccepted, true, reasonAccepted, "")
	c.set(v1alpha1.ConditionAddressAllocated, true, "Allocated", "")
	c.set(v1alpha1.ConditionProgrammed, true, "Programmed", "")
	c.set(v1alpha1.ConditionAnnounced, true, "Announced", "")
	meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionAnnounced).ObservedGeneration = 1
	c.ready()
	ready := meta.FindStatusCondition(lb.Status.Conditions, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionTrue, ready.Status)
	require.EqualValues(t, 1, ready.ObservedGeneration)
}

func TestAnAddressIsAnnouncedByASelectedGateway(t *testing.T) {
	gateway := func(name, backend string, elects bool) v1alpha1.Gateway {
		return v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"backend": backend}}, Status: v1alpha1.GatewayStatus{
			Elects: elects, Candidates: []string{"a", "b"}, AppliedResourceVersion: "10", AnnouncedResourceVersion: "10"}}
	}
	pools := []v1alpha1.AddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Spec: v1alpha1.AddressPoolSpec{
		GatewaySelector: &metav1.LabelSelector{MatchLabels: map[string]string{"backend": "ebpf"}}}}}
	lb := webAt10()
	for i := range lb.Status.Addresses {
		lb.Status.Addresses[i].Pool = "fast"
	}
	for _, elects := range []bool{true, false} {
		require.True(t, viewOf([]v1alpha1.Gateway{gateway("a", "ebpf", elects), gateway("b", "nftables", elects)}, nil, pools, lb).announced)
		require.False(t, viewOf([]v1alpha1.Gateway{gateway("a", "nftables", elects), gateway("b", "nftables", elects)}, nil, pools, lb).announced)
	}
}

// Each address is announced by a gateway, or the status says why not.
func TestAnAddressThatIsAnnouncedToNobodyIsNotAnnounced(t *testing.T) {
	const why = "BGPPeer tor (192.0.2.254): spec.families does not name IPv6"
	gateway := func(name string, change func(*v1alpha1.GatewayStatus)) v1alpha1.Gateway {
		g := v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "10", AnnouncedResourceVersion: "10"}}
		change(&g.Status)
		return g
	}
	silent := func(s *v1alpha1.GatewayStatus) {
		s.Silent = []v1alpha1.GatewaySilence{{Family: corev1.IPv6Protocol, Message: why}}
	}
	loud := func(*v1alpha1.GatewayStatus) {}
	failed := func(s *v1alpha1.GatewayStatus) {
		s.Failures = []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/web", Record: "frontend", Message: "table full"}}
	}
	behind := func(s *v1alpha1.GatewayStatus) { s.AppliedResourceVersion, s.AnnouncedResourceVersion = "9", "9" }
	elects := func(candidates ...string) func(*v1alpha1.GatewayStatus) {
		return func(s *v1alpha1.GatewayStatus) { s.Elects, s.Candidates = true, candidates }
	}
	without := func(names ...string) func(*v1alpha1.GatewayStatus) {
		return func(s *v1alpha1.GatewayStatus) {
			s.Elects, s.Candidates, s.WithoutIPv6 = true, []string{"a", "b"}, names
		}
	}
	both := func(changes ...func(*v1alpha1.GatewayStatus)) func(*v1alpha1.GatewayStatus) {
		return func(s *v1alpha1.GatewayStatus) {
			for _, change := range changes {
				change(s)
			}
		}
	}
	six := netip.MustParseAddr("2001:db8:f::1")
	winner := election.Winner(six, []string{"a", "b"}, nil)
	other := map[string]string{"a": "b", "b": "a"}[winner]
	labelled := []v1alpha1.AddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Spec: v1alpha1.AddressPoolSpec{GatewaySelector: &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "1"}}}}}
	for name, c := range map[string]struct {
		gateways            []v1alpha1.Gateway
		pools               []v1alpha1.AddressPool
		announced, silenced bool
		says                string
	}{
		"one gateway tells no router of IPv6":               {[]v1alpha1.Gateway{gateway("a", silent)}, nil, false, true, "2001:db8:f::1 is not announced: gateway a: " + why},
		"two tell none":                                     {[]v1alpha1.Gateway{gateway("a", silent), gateway("b", silent)}, nil, false, true, "2001:db8:f::1 is not announced: gateway a: " + why + "; gateway b: " + why},
		"another one tells some":                            {[]v1alpha1.Gateway{gateway("a", silent), gateway("b", loud)}, nil, true, false, ""},
		"another one may be about to":                       {[]v1alpha1.Gateway{gateway("a", silent), gateway("b", behind)}, nil, false, false, "gateway b: is about to"},
		"another gateway refuses the LoadBalancer":          {[]v1alpha1.Gateway{gateway("a", silent), gateway("b", failed)}, nil, false, true, "gateway b: frontend: table full"},
		"the elected one has no IPv6":                       {[]v1alpha1.Gateway{gateway(winner, both(silent, elects("a", "b"))), gateway(other, elects("a", "b"))}, nil, false, true, "gateway " + winner + ": " + why},
		"the one that is not elected has no IPv6":           {[]v1alpha1.Gateway{gateway(winner, elects("a", "b")), gateway(other, both(silent, elects("a", "b")))}, nil, true, false, ""},
		"the elected gateway refuses the LoadBalancer":      {[]v1alpha1.Gateway{gateway(winner, both(failed, elects("a", "b"))), gateway(other, elects("a", "b"))}, nil, false, true, "gateway " + winner + ": frontend: table full"},
		"another one is elected, as that one has no IPv6":   {[]v1alpha1.Gateway{gateway(winner, both(silent, without(winner))), gateway(other, without(winner))}, nil, true, false, ""},
		"no elected one has IPv6":                           {[]v1alpha1.Gateway{gateway("a", both(silent, without("a", "b"))), gateway("b", both(silent, without("a", "b")))}, nil, false, true, "2001:db8:f::1 is not announced: gateway a: " + why + "; gateway b: " + why},
		"no candidate yet":                                  {[]v1alpha1.Gateway{gateway("a", elects())}, nil, false, false, "no gateway is a candidate for this address yet"},
		"no candidate, and the only gateway has no carrier": {[]v1alpha1.Gateway{gateway("a", both(silent, elects()))}, nil, false, true, "2001:db8:f::1 is not announced: gateway a: " + why},
		"the pool chooses no gateway":                       {[]v1alpha1.Gateway{gateway("a", loud)}, labelled, false, true, "203.0.113.1 is not announced: no gateway has the labels of spec.gatewaySelector of AddressPool fast"},
		"there is none":                                     {nil, nil, false, true, "there is no gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			lb := webAt10()
			for i := range lb.Status.Addresses {
				lb.Status.Addresses[i].Pool = "fast"
			}
			view := viewOf(c.gateways, nil, c.pools, lb)
			require.Equal(t, c.announced, view.announced, "%v", view.unanswered)
			require.Equal(t, c.silenced, view.silenced, "%v", view.unanswered)
			if c.says != "" {
				require.Contains(t, view.unansweredMessage(), c.says)
			}
		})
	}
}

func TestGatewaysHoldVersionsUpToTheirOwn(t *testing.T) {
	gateway := func(applied, announced int, failures ...v1alpha1.GatewayFailure) v1alpha1.Gateway {
		return v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "gw"}, Status: v1alpha1.GatewayStatus{
			AppliedResourceVersion: fmt.Sprint(applied), AnnouncedResourceVersion: fmt.Sprint(announced), Failures: failures}}
	}
	behind := func(g v1alpha1.Gateway, namespace string, version int) v1alpha1.Gateway {
		g.Status.Behind = []v1alpha1.GatewayBehind{{Namespace: "tenant-0", ResourceVersion: "1"}, {Namespace: namespace, ResourceVersion: fmt.Sprint(version)}}
		return g
	}
	failure := v1alpha1.GatewayFailure{LoadBalancer: "tenant-a/web", Record: "frontend TCP 203.0.113.1:80", Message: "table full"}
	for name, c := range map[string]struct {
		gateways           []v1alpha1.Gateway
		applied, announced bool
		failure            string
	}{
		"none":                        {nil, false, false, ""},
		"behind":                      {[]v1alpha1.Gateway{gateway(9, 9)}, false, false, ""},
		"longer numbers are higher":   {[]v1alpha1.Gateway{gateway(100, 100)}, true, true, ""},
		"applied, not yet announced":  {[]v1alpha1.Gateway{gateway(10, 9)}, true, false, ""},
		"another tenant is behind":    {[]v1alpha1.Gateway{behind(gateway(12, 12), "tenant-b", 9)}, true, true, ""},
		"the tenant is behind":        {[]v1alpha1.Gateway{behind(gateway(12, 12), "tenant-a", 9)}, false, false, ""},
		"behind, not by this one":     {[]v1alpha1.Gateway{behind(gateway(12, 12), "tenant-a", 10)}, true, true, ""},
		"refused":                     {[]v1alpha1.Gateway{gateway(10, 10, failure)}, false, false, "gateway gw: frontend TCP 203.0.113.1:80: table full"},
		"refused here, applied there": {[]v1alpha1.Gateway{gateway(10, 10, failure), gateway(11, 11)}, true, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			view := viewOf(c.gateways, nil, nil, webAt10())
			require.Equal(t, c.applied, view.applied)
			require.Equal(t, c.announced, view.announced)
			require.Equal(t, c.failure, view.failure)
		})
	}
}

func TestALoadBalancerThatMayBeRefusedIsNotServed(t *testing.T) {
	g := v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "gw"}, Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "10", AnnouncedResourceVersion: "10", Unlisted: []string{"tenant-b"}}}
	require.True(t, viewOf([]v1alpha1.Gateway{g}, nil, nil, webAt10()).announced, "the list of another tenant is not complete")
	g.Status.Unlisted = []string{"tenant-a"}
	view := viewOf([]v1alpha1.Gateway{g}, nil, nil, webAt10())
	require.False(t, view.applied)
	require.False(t, view.announced)
	require.Empty(t, view.failure, "nor refused")
	require.Equal(t, []string{"gateway gw: refuses more LoadBalancers of namespace tenant-a than its status lists, and this one may be among them"}, view.maybeRefused)
	g.Status.Unlisted = []string{v1alpha1.AllNamespaces}
	require.NotEmpty(t, viewOf([]v1alpha1.Gateway{g}, nil, nil, webAt10()).maybeRefused, "it stands for all namespaces")
	g.Status.Failures = []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/web", Record: "frontend", Message: "table full"}}
	view = viewOf([]v1alpha1.Gateway{g}, nil, nil, webAt10())
	require.Equal(t, "gateway gw: frontend: table full", view.failure, "the LoadBalancer is listed")
	require.Empty(t, view.maybeRefused)
}

// A LoadBalancer that was served before may also be refused now: its conditions are Unknown.
func TestALoadBalancerThatMayBeRefusedIsUnknown(t *testing.T) {
	a := absenceOf(t, "g1", "g2")
	a.after(0)
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status)
	say := func(name string, change func(*v1alpha1.GatewayStatus)) (before, after *v1alpha1.Gateway) {
		t.Helper()
		after = &v1alpha1.Gateway{}
		require.NoError(t, a.hub.Get(t.Context(), client.ObjectKey{Name: name}, after))
		before = after.DeepCopy()
		change(&after.Status)
		require.NoError(t, a.hub.Status().Update(t.Context(), after))
		return before, after
	}
	elects := func(s *v1alpha1.GatewayStatus) { s.Elects, s.Candidates = true, []string{"g1"} }
	say("g1", elects)
	say("g2", elects)
	_, g1 := say("g1", func(s *v1alpha1.GatewayStatus) { s.Unlisted = []string{"tenant-a"} })
	web := reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "tenant-a", Name: "web"}}
	require.Contains(t, a.r.possiblyFailing(t.Context(), g1), web, "a change of unlisted reconciles it")
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionProgrammed).Status, "the other gateway has it")
	for _, kind := range []string{v1alpha1.ConditionAnnounced, v1alpha1.ConditionReady} {
		is := a.condition(kind)
		require.Equal(t, metav1.ConditionUnknown, is.Status, "the gateway that answers for its address may have refused it: %s", kind)
		require.Equal(t, "MaybeRefused", is.Reason)
	}
	_, g2 := say("g2", func(s *v1alpha1.GatewayStatus) { s.Unlisted = []string{v1alpha1.AllNamespaces} })
	require.Contains(t, a.r.possiblyFailing(t.Context(), g2), web)
	for _, kind := range []string{v1alpha1.ConditionProgrammed, v1alpha1.ConditionAnnounced, v1alpha1.ConditionReady} {
		require.Equal(t, metav1.ConditionUnknown, a.condition(kind).Status, kind)
	}
	require.Contains(t, a.condition(v1alpha1.ConditionProgrammed).Message, "gateway g1: refuses more LoadBalancers of namespace tenant-a than its status lists, and this one may be among them")
	require.Contains(t, strings.Join(drained(a.r), "\n"), "MaybeRefused", "there is an event")
	for _, name := range []string{"g1", "g2"} {
		say(name, func(s *v1alpha1.GatewayStatus) { s.Unlisted = nil })
	}
	require.Equal(t, metav1.ConditionTrue, a.condition(v1alpha1.ConditionReady).Status)
}

func TestAWaitingLoadBalancerHasTheReason(t *testing.T) {
	broken := v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "gw"}, Status: v1alpha1.GatewayStatus{Conditions: []metav1.Condition{
		{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Message: "configure backend envoy: no Envoy"}}}}
	view := viewOf([]v1alpha1.Gateway{broken, {ObjectMeta: metav1.ObjectMeta{Name: "slow"}}}, nil, nil, webAt10())
	require.Equal(t, "none of 2 gateways has applied it yet: gateway gw: configure backend envoy: no Envoy", view.waitMessage())
	w := waiting{gateway: map[client.ObjectKey]string{{Namespace: "tenant-a", Name: "web"}: "10"}}
	require.Len(t, w.reported(&broken), 1, "the LoadBalancer is reconciled to get the reason")
	require.Empty(t, w.reported(&v1alpha1.Gateway{}))
	behind := v1alpha1.Gateway{Status: v1alpha1.GatewayStatus{AppliedResourceVersion: "12", Behind: []v1alpha1.GatewayBehind{{Namespace: "tenant-a", ResourceVersion: "9"}}}}
	require.Empty(t, w.reported(&behind))
	behind.Status.Behind = nil
	require.Len(t, w.reported(&behind), 1)
}

func TestAGatewayWithAnExpiredLeaseIsNotWaitedFor(t *testing.T) {
	lease := func(name string, ago time.Duration) *coordinationv1.Lease {
		renewed := metav1.NewMicroTime(time.Now().Add(-ago))
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: name, Labels: map[string]string{membership.Label: name}},
			Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}
	}
	elsewhere := lease("controller", time.Hour)
	elsewhere.Labels = nil
	reader := fake.NewClientBuilder().WithObjects(lease("here", time.Second), lease("gone", time.Hour), elsewhere).Build()
	gone, err := goneGateways(t.Context(), reader, "kubelb")
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"gone": true}, gone)
}

func TestLoadBalancersThatAGatewayFailsAreReconciled(t *testing.T) {
	g := v1alpha1.Gateway{Status: v1alpha1.GatewayStatus{Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/web", Message: "the envoy backend does not support rate-limits"}, {Record: "backend ebpf", Message: "not purged"}}}}
	require.Equal(t, []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: "tenant-a", Name: "web"}}}, failing(&g))
}

// A new process keeps the reservations of the former one.
func TestReservationsOfRequestedAddressesSurviveARestart(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.4")
	web := recorded("web", 0, "203.0.113.4")
	web.Spec.RequestedAddresses = []string{"203.0.113.4"}
	scheme := schemeOf(t)
	server := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.AddressPool{}).WithObjects(public(), web).Build()
	allocator := &addressAllocator{reader: server}
	require.NoError(t, allocator.load(t.Context()))
	now := time.Now()
	require.NoError(t, allocator.reserve(t.Context(), server, web, false, now))
	require.NoError(t, server.Delete(t.Context(), web))
	ask := func(allocator *addressAllocator, namespace string) *ipam.Refusal {
		wants := ofTenantA("anew")
		wants.Namespace, wants.Requested = namespace, []netip.Addr{address}
		return allocator.allocate(wants, nil, ipam.Limits{}, false).refusal
	}
	allocator = &addressAllocator{reader: server}
	require.NoError(t, allocator.load(t.Context()))
	require.Equal(t, ipam.AddressInUse, ask(allocator, "tenant-b").Reason)
	require.Nil(t, ask(allocator, "tenant-a"))
	ended, _ := allocator.expire(now)
	require.True(t, ended, "waiting LoadBalancers are reconciled after the reservation")

	// An AddressPool without reservations, and an address that was not requested.
	never, pool := metav1.Duration{}, &v1alpha1.AddressPool{}
	require.NoError(t, server.Get(t.Context(), client.ObjectKey{Name: "public"}, pool))
	pool.Spec.ReserveRequestedFor = &never
	require.NoError(t, server.Update(t.Context(), pool))
	refresh(t, allocator, pool)
	require.NoError(t, allocator.reserve(t.Context(), server, web, false, now))
	require.Zero(t, allocator.allocator.CountReservations())
	refresh(t, allocator, public())
	web.Spec.RequestedAddresses = nil
	require.NoError(t, allocator.reserve(t.Context(), server, web, false, now))
	require.Zero(t, allocator.allocator.CountReservations())
}

// After the deletion of a Tenant, Services in the tenant cluster may still have their addresses for a while.
func TestAddressesOfADeletedTenantStayReservedUntilItIsGone(t *testing.T) {
	const wanted = "203.0.113.4"
	deleted, never := metav1.NewTime(time.Now()), metav1.Duration{}
	web, other := recorded("web", 0, wanted), &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "b"}}
	web.DeletionTimestamp, web.Finalizers = &deleted, []string{v1alpha1.CleanupFinalizer}
	leaves := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a", DeletionTimestamp: &deleted, Finalizers: []string{v1alpha1.CleanupFinalizer}}}
	pool := public()
	pool.Spec.ReserveRequestedFor = &never
	server := fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithStatusSubresource(&v1alpha1.AddressPool{}, &v1alpha1.LoadBalancer{}).WithObjects(pool, web, leaves, other).Build()
	r := reconcilerOf(t, server)
	_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(web)})
	require.NoError(t, err)
	require.ErrorContains(t, server.Get(t.Context(), client.ObjectKeyFromObject(web), web), "not found", "gateways have withdrawn the address")
	ask := func(allocator *addressAllocator) *ipam.Refusal {
		wants := translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-b", Name: "web"}, Type: "LoadBalancer", Requested: []netip.Addr{netip.MustParseAddr(wanted)}}
		return allocator.allocate(wants, nil, ipam.Limits{}, false).refusal
	}
	require.NotNil(t, ask(r.addresses))
	require.Equal(t, ipam.AddressInUse, ask(r.addresses).Reason)
	anew := &addressAllocator{reader: server}
	require.NoError(t, anew.load(t.Context()))
	require.NotNil(t, ask(anew), "the reservation is in the status")
	// The reservation does not end as long as the Tenant exists.
	now := time.Now()
	for range 10 {
		now = now.Add(v1alpha1.DefaultReservation * 3 / 4)
		anew.extendReservations("tenant-a", now)
		ended, _ := anew.expire(now)
		require.False(t, ended)
	}
	ended, _ := anew.expire(now.Add(2 * v1alpha1.DefaultReservation))
	require.True(t, ended)
	require.Nil(t, ask(anew))
}

// New LoadBalancers of its CCM get no address.
func TestADeletedTenantGetsNoAddress(t *testing.T) {
	deleted, web := metav1.NewTime(time.Now()), recorded("web", 0)
	web.Spec = v1alpha1.LoadBalancerSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80}},
		Endpoints: []v1alpha1.LoadBalancerEndpoints{{Ports: []v1alpha1.EndpointPort{{Port: 30080}}}}}
	leaves := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a", DeletionTimestamp: &deleted, Finalizers: []string{v1alpha1.CleanupFinalizer}}}
	server := fake.NewClientBuilder().WithScheme(schemeOf(t, coordinationv1.AddToScheme)).WithStatusSubresource(&v1alpha1.LoadBalancer{}).WithObjects(public(), web, leaves).Build()
	r := reconcilerOf(t, server)
	for range 3 {
		_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(web)})
		require.NoError(t, err)
	}
	require.NoError(t, server.Get(t.Context(), client.ObjectKeyFromObject(web), web))
	require.Empty(t, web.Status.Addresses)
	ready := meta.FindStatusCondition(web.Status.Conditions, v1alpha1.ConditionReady)
	require.Equal(t, "TenantDeleted", ready.Reason)
	require.Contains(t, ready.Message, "is deleting Tenant a")
}

func TestReservationsOfOneTenantDoNotEvictThoseOfOthers(t *testing.T) {
	wide, web := public(), recorded("web", 0, "203.0.113.4")
	wide.Spec.Addresses, web.Spec.RequestedAddresses = []string{"203.0.0.0/16"}, []string{"203.0.113.4"}
	scheme := schemeOf(t)
	server := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.AddressPool{}).WithObjects(wide, web).Build()
	allocator, now := &addressAllocator{reader: server}, time.Now()
	require.NoError(t, allocator.load(t.Context()))
	for i := 1; i <= v1alpha1.MaxReserved+1; i++ {
		allocator.reserveAddress(ipam.Allocation{Address: netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), Pool: "public"}, "tenant-hostile", false, now)
	}
	ended, _ := allocator.expire(now)
	require.True(t, ended, "waiting LoadBalancers are reconciled after a reservation was evicted")
	require.NoError(t, allocator.reserve(t.Context(), server, web, false, now))
	require.NoError(t, server.Get(t.Context(), client.ObjectKeyFromObject(wide), wide))
	require.Len(t, wide.Status.Reserved, v1alpha1.MaxReserved)
	allocator.release("tenant-a/web")
	wants := ofTenantA("waits")
	wants.Namespace, wants.Requested = "tenant-hostile", []netip.Addr{netip.MustParseAddr("203.0.113.4")}
	require.Equal(t, ipam.AddressInUse, allocator.allocate(wants, nil, ipam.Limits{}, false).refusal.Reason)
}
