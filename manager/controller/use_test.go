package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

func number(i int32) *int32 { return &i }

func busyGateway(name string, tenants ...v1alpha1.GatewayTenantUse) *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{Tenants: tenants}}
}

func TestTheUseOfATenantIsThatOfItsLargestLoadBalancerAndBusiestPort(t *testing.T) {
	scheme := schemeOf(t)
	ips := func(list ...string) (out []v1alpha1.EndpointAddress) {
		for _, ip := range list {
			out = append(out, v1alpha1.EndpointAddress{IP: ip})
		}
		return out
	}
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "tenant-a", Name: name} }
	nodes := &v1alpha1.Addresses{ObjectMeta: named("default"), Spec: v1alpha1.AddressesSpec{Addresses: ips("198.51.100.1", "198.51.100.2", "198.51.100.3", "10.0.0.1")}}
	unused := &v1alpha1.Addresses{ObjectMeta: named("unused"), Spec: v1alpha1.AddressesSpec{Addresses: ips("198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")}}
	refers, itself := &v1alpha1.LoadBalancer{ObjectMeta: named("refers")}, &v1alpha1.LoadBalancer{ObjectMeta: named("itself")}
	refers.Spec.Endpoints = []v1alpha1.LoadBalancerEndpoints{{AddressesReference: &v1alpha1.AddressesReference{Name: "default"}}}
	itself.Spec.Endpoints = []v1alpha1.LoadBalancerEndpoints{{Addresses: ips("198.51.100.1")}}
	tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"198.51.100.0/24"}}}
	allocator := allocatorOf(t)
	require.NoError(t, allocator.load(t.Context()))
	r := &tenantReconciler{addresses: allocator, gateways: &gatewayMonitor{reasons: map[string]string{"g3": "it is away"}},
		client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(nodes, unused, refers, itself,
			busyGateway("g1", v1alpha1.GatewayTenantUse{Tenant: "a", ConnectionsPerPort: number(40), NewConnectionsPerSecondPerPort: number(5)}, v1alpha1.GatewayTenantUse{Tenant: "b", ConnectionsPerPort: number(90)}),
			busyGateway("g2", v1alpha1.GatewayTenantUse{Tenant: "a", ConnectionsPerPort: number(60)}),
			busyGateway("g3", v1alpha1.GatewayTenantUse{Tenant: "a", ConnectionsPerPort: number(100)})).Build()}
	r.filter = &targetFilter{client: r.client, addresses: allocator}
	told := make(chan event.GenericEvent, 1)
	targets := &targetReconciler{client: r.client, filter: r.filter, changed: make(chan event.GenericEvent, 10), tenants: told}
	look := func() {
		_, err := targets.Reconcile(t.Context(), reconcile.Request{})
		require.NoError(t, err)
	}
	used, err := r.usage(t.Context(), tenant)
	require.NoError(t, err)
	require.Equal(t, &v1alpha1.TenantUse{}, used, "it has no limit of any of that")
	tenant.Spec.Limits = v1alpha1.TenantLimits{EndpointsPerLoadBalancer: number(10), ConnectionsPerPort: number(100), NewConnectionsPerSecondPerPort: number(20)}
	tenant.Status.Used = &v1alpha1.TenantUse{EndpointsPerLoadBalancer: number(7)}
	used, err = r.usage(t.Context(), tenant)
	require.NoError(t, err)
	require.Equal(t, number(7), used.EndpointsPerLoadBalancer, "as it was, until they are counted")
	require.NoError(t, r.client.Create(t.Context(), tenant))
	look()
	require.Equal(t, "a", (<-told).Object.GetName(), "they are counted")
	look()
	require.Empty(t, told, "nothing was counted again")
	used, err = r.usage(t.Context(), tenant)
	require.NoError(t, err)
	require.Equal(t, &v1alpha1.TenantUse{EndpointsPerLoadBalancer: number(3), ConnectionsPerPort: number(60), NewConnectionsPerSecondPerPort: number(5)}, used)
	tenant.Spec.Limits.EndpointsPerLoadBalancer = number(2)
	used, err = r.usage(t.Context(), tenant)
	require.NoError(t, err)
	require.Equal(t, number(2), used.EndpointsPerLoadBalancer, "no more than it may")

	r.gateways.reasons = map[string]string{"g1": "away", "g2": "away", "g3": "away"}
	used, err = r.usage(t.Context(), tenant)
	require.NoError(t, err)
	require.Nil(t, used.ConnectionsPerPort, "the number is unknown")
	require.Nil(t, used.NewConnectionsPerSecondPerPort)
}

func TestTenantsWhoseUseChangesAreReconciled(t *testing.T) {
	use := func(tenant string, n int32) v1alpha1.GatewayTenantUse {
		return v1alpha1.GatewayTenantUse{Tenant: tenant, ConnectionsPerPort: &n}
	}
	before, now := busyGateway("g", use("a", 1), use("b", 2), use("c", 3)), busyGateway("g", use("a", 1), use("b", 3), use("d", 4))
	require.Equal(t, []string{"b", "c", "d"}, differing(before, now))
	require.Equal(t, []string{"a", "b", "c"}, differing(before, nil))
	require.Equal(t, []string{"a", "b", "d"}, differing(nil, now))
}
