package controller

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/translate"
)

// poolTest is a hub with an AddressPool, a tenant with the nodes 198.51.100.11 and .12, a gateway and a router.
type poolTest struct {
	*testing.T
	client.Client
	allocator *addressAllocator
	pools     *poolReconciler
}

func newPoolTest(t *testing.T, pool string) *poolTest {
	scheme := schemeOf(t, corev1.AddToScheme)
	e := &poolTest{T: t}
	e.Client = fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.AddressPool{}).WithObjects(
		&v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "public"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{pool}}},
		&v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"198.51.100.0/24", "203.0.113.0/24"}}},
		&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g1"}, Status: v1alpha1.GatewayStatus{HostAddresses: []string{"192.0.2.1"}}},
		&v1alpha1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "tor"}, Spec: v1alpha1.BGPPeerSpec{Address: "192.0.2.254"}}).Build()
	e.nodes("198.51.100.11", "198.51.100.12")
	e.restart()
	return e
}

// restart starts a new process of the controllers.
func (e *poolTest) restart() {
	e.allocator = &addressAllocator{reader: e.Client}
	e.allocator.used = &targetFilter{client: e.Client, addresses: e.allocator}
	numbers, err := newMetrics(nil)
	require.NoError(e, err)
	e.pools = &poolReconciler{client: e.Client, addresses: e.allocator, changed: make(chan event.GenericEvent, 100), metrics: numbers}
	e.look()
}

func (e *poolTest) look() {
	_, err := e.pools.Reconcile(e.Context(), reconcile.Request{})
	require.NoError(e, err)
}

// nodes adds nodes to the tenant's list.
func (e *poolTest) nodes(ips ...string) {
	a := &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "of-" + ips[0]}}
	for _, ip := range ips {
		a.Spec.Addresses = append(a.Spec.Addresses, v1alpha1.EndpointAddress{IP: ip})
	}
	require.NoError(e, e.Create(context.Background(), a))
}

func (e *poolTest) edit(change func(*v1alpha1.AddressPool)) {
	pool := e.pool()
	change(pool)
	require.NoError(e, e.Update(e.Context(), pool))
	e.look()
}

func (e *poolTest) pool() *v1alpha1.AddressPool {
	var pool v1alpha1.AddressPool
	require.NoError(e, e.Get(e.Context(), client.ObjectKey{Name: "public"}, &pool))
	return &pool
}

// says requires this condition Ready of the AddressPool.
func (e *poolTest) says(status metav1.ConditionStatus, reason, message string) {
	e.Helper()
	c := e.pool().Status.Conditions
	require.Len(e, c, 1)
	require.Equal(e, []any{status, reason}, []any{c[0].Status, c[0].Reason}, c[0].Message)
	require.Contains(e, c[0].Message, message)
}

// refused returns why the tenant may not target an address; nil if it may.
func (e *poolTest) refused(address string) error {
	f := e.allocator.used.(*targetFilter)
	require.NoError(e, f.refresh(e.Context()))
	tenant, _ := f.tenantOf("tenant-a")
	var why error
	require.NoError(e, f.with(e.Context(), func(filter translate.TargetFilter) { _, why = filter.Check(address, tenant) }))
	return why
}

func TestAPoolThatCoversNodesIsNotReadyAndNodesStayTargets(t *testing.T) {
	e := newPoolTest(t, "198.51.100.0/24")
	e.says(metav1.ConditionFalse, "CoversUsedAddresses", "198.51.100.11 (a node of Tenant a), 198.51.100.12 (a node of Tenant a)")
	require.NoError(t, e.refused("198.51.100.11"))
	require.Empty(t, e.pool().Status.Addresses)
	require.Equal(t, ipam.NoMatchingPool, e.allocator.allocate(ofTenantA("web"), nil, ipam.Limits{}, false).refusal.Reason)

	e.restart()
	e.says(metav1.ConditionFalse, "CoversUsedAddresses", "198.51.100.11")
	require.NoError(t, e.refused("198.51.100.11"), "after a restart of the controllers, too")

	e.edit(func(p *v1alpha1.AddressPool) { p.Spec.Addresses = []string{"198.51.100.128/25"} })
	e.says(metav1.ConditionTrue, "Ready", "addresses can be allocated")
	require.Equal(t, []string{"198.51.100.129-198.51.100.254"}, e.pool().Status.Addresses)
	require.Equal(t, []string{"198.51.100.129"}, allocate(t, e.allocator, "web"))
	require.NoError(t, e.refused("198.51.100.11"))
	require.ErrorContains(t, e.refused("198.51.100.200"), "external address of an AddressPool")
}

func TestATenantThatListsExternalAddressesDoesNotHarmTheirPool(t *testing.T) {
	e := newPoolTest(t, "203.0.113.0/24")
	e.says(metav1.ConditionTrue, "Ready", "")
	e.nodes("203.0.113.7")
	e.look()
	e.restart()
	e.says(metav1.ConditionTrue, "Ready", "")
	require.ErrorContains(t, e.refused("203.0.113.7"), "external address of an AddressPool")

	// A change of the AddressPool neither releases external ranges nor harms existing nodes.
	e.edit(func(p *v1alpha1.AddressPool) { p.Spec.Addresses = []string{"203.0.113.0/24", "198.51.100.0/28"} })
	e.says(metav1.ConditionFalse, "CoversUsedAddresses", "198.51.100.11 (a node of Tenant a)")
	require.ErrorContains(t, e.refused("203.0.113.7"), "external address of an AddressPool")
	require.NoError(t, e.refused("198.51.100.11"))
	e.restart()
	require.ErrorContains(t, e.refused("203.0.113.7"), "external address of an AddressPool")
	require.Equal(t, []string{"203.0.113.1-203.0.113.254"}, e.pool().Status.Addresses)
	e.edit(func(p *v1alpha1.AddressPool) { p.Spec.Addresses = []string{"203.0.113.0/24", "198.51.100.16/28"} })
	e.says(metav1.ConditionTrue, "Ready", "")
	require.Len(t, e.pool().Status.Addresses, 2)
}

func TestAPoolThatCoversAHostOrARouterIsNotReady(t *testing.T) {
	e := newPoolTest(t, "192.0.2.0/24")
	e.says(metav1.ConditionFalse, "CoversUsedAddresses", "192.0.2.1 (gateway g1), 192.0.2.254 (the router of BGPPeer tor)")
	e.edit(func(p *v1alpha1.AddressPool) { p.Spec.Addresses = []string{"192.0.2.2-192.0.2.9"} })
	e.says(metav1.ConditionTrue, "Ready", "")

	// The address of a new gateway is not allocated, and the other addresses are.
	require.NoError(t, e.Create(t.Context(), &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g2"}, Status: v1alpha1.GatewayStatus{HostAddresses: []string{"192.0.2.2"}}}))
	e.look()
	e.says(metav1.ConditionTrue, "Ready", "addresses can be allocated, except 192.0.2.2 (gateway g2)")
	require.Equal(t, "7", e.pool().Status.IPv4.Free)
	asks := ofTenantA("asks")
	asks.Requested = []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	require.Equal(t, "requested address 192.0.2.2 is an address of gateway g2; ask for another one or none", e.allocator.allocate(asks, nil, ipam.Limits{}, false).refusal.Message)
	require.Equal(t, []string{"192.0.2.3"}, allocate(t, e.allocator, "web"))
}

// An AddressPool that became Ready with an earlier release has no status.addresses.
func TestAPoolOfAnEarlierReleaseKeepsItsRanges(t *testing.T) {
	e := newPoolTest(t, "203.0.113.0/24")
	pool := e.pool()
	pool.Status.Addresses = nil
	require.NoError(t, e.Status().Update(t.Context(), pool))
	e.nodes("203.0.113.7")
	e.restart()
	e.says(metav1.ConditionTrue, "Ready", "")
	require.Equal(t, []string{"203.0.113.1-203.0.113.254"}, e.pool().Status.Addresses)
}
