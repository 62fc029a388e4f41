package gateway

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestAnInvalidOrSmallerAddressPoolMovesNoAddressToOtherGateways(t *testing.T) {
	g := New(Options{Name: "g", Log: slog.New(slog.DiscardHandler)}, nil, nil)
	pool := func(addresses string) {
		poolChanged(&v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{addresses},
			GatewaySelector: &metav1.LabelSelector{MatchLabels: map[string]string{"backend": "ebpf"}}}}, false)(g)
	}
	lb := &v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "web"}, Status: v1alpha1.LoadBalancerStatus{
		Addresses: []v1alpha1.AllocatedAddress{{Address: "203.0.113.200", Pool: "fast"}}}}
	address := netip.MustParseAddr("203.0.113.200")
	gatewayChanged(&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"backend": "ebpf"}}}, false)(g)
	mustServe := func(why string) {
		t.Helper()
		serves := g.selection.ServingAddress(address)
		require.NotNil(t, serves, why)
		require.True(t, serves("a"), why)
		require.False(t, serves("g"), why)
	}
	pool("203.0.113.0/24")
	mustServe("as the AddressPool says")
	pool("203.0.113.255-203.0.113.0")
	mustServe("the former range counts")
	loadBalancerChanged(lb, false)(g)
	pool("203.0.113.0/25")
	mustServe("the LoadBalancer keeps its address, with the same gateways")
	loadBalancerChanged(lb, true)(g)
	require.Nil(t, g.selection.ServingAddress(address))
}

// The controllers record the ranges that contain no tenant's node. Until then an AddressPool forbids no target.
func TestAnAddressPoolForbidsTargetsOnceItIsFoundToContainNone(t *testing.T) {
	g := New(Options{Name: "g", Log: slog.New(slog.DiscardHandler)}, nil, nil)
	tenantChanged(&v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"198.51.100.0/24"}}}, false)(g)
	addressesChanged(&v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "default"},
		Spec: v1alpha1.AddressesSpec{Addresses: []v1alpha1.EndpointAddress{{IP: "198.51.100.11"}}}}, false)(g)
	loadBalancerChanged(&v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "web"}, Spec: v1alpha1.LoadBalancerSpec{
		Type: corev1.ServiceTypeLoadBalancer, Ports: []v1alpha1.LoadBalancerPort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		Endpoints: []v1alpha1.LoadBalancerEndpoints{{AddressesReference: &v1alpha1.AddressesReference{Name: "default"}, Ports: []v1alpha1.EndpointPort{{Port: 30080, Protocol: corev1.ProtocolTCP}}}}},
		Status: v1alpha1.LoadBalancerStatus{Addresses: []v1alpha1.AllocatedAddress{{Address: "203.0.113.1"}}}}, false)(g)
	endpoints := func() int {
		g.hub.Flush()
		require.Len(t, g.hub.Snapshot().Pools, 1)
		return len(g.hub.Snapshot().Pools[0].Endpoints)
	}
	pool := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "wide"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"198.51.100.0/24"}}}
	poolChanged(pool, false)(g)
	require.Equal(t, 1, endpoints(), "an AddressPool that the controllers have not checked")
	pool.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "CoversUsedAddresses"}}
	poolChanged(pool, false)(g)
	require.Equal(t, 1, endpoints(), "an AddressPool that contains the node")
	pool.Status.Addresses = []string{"198.51.100.1-198.51.100.254"}
	poolChanged(pool, false)(g)
	require.Zero(t, endpoints(), "an AddressPool that was there before the node")
	poolChanged(pool, true)(g)
	require.Equal(t, 1, endpoints(), "a deleted AddressPool")
}
