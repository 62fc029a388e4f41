package gateway

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestASlipInAPoolAndAPoolThatShrinksMoveNoAddressToOtherGateways(t *testing.T) {
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
	mustServe("as the pool says")
	pool("203.0.113.255-203.0.113.0")
	mustServe("what it said before counts")
	loadBalancerChanged(lb, false)(g)
	pool("203.0.113.0/25")
	mustServe("the LoadBalancer keeps its address, and the address its gateways")
	loadBalancerChanged(lb, true)(g)
	require.Nil(t, g.selection.ServingAddress(address))
}
