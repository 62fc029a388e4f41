package controller

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// Tenants old and young have their nodes in one network.
func TestTheFirstTenantThatListsANodeOwnsIt(t *testing.T) {
	scheme := schemeOf(t, corev1.AddToScheme)
	tenant := func(name string) *v1alpha1.Tenant {
		return &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"198.51.100.0/24"}}}
	}
	nodes := func(name string, ips ...string) *v1alpha1.Addresses {
		a := &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-" + name, Name: "default"}}
		for _, ip := range ips {
			a.Spec.Addresses = append(a.Spec.Addresses, v1alpha1.EndpointAddress{IP: ip})
		}
		return a
	}
	gateway := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g1"}, Status: v1alpha1.GatewayStatus{HostAddresses: []string{"198.51.100.1"}}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "198.51.100.2"}, {Type: corev1.NodeHostName, Address: "n1"}}}}
	server := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.Addresses{}).
		WithObjects(public(), tenant("old"), tenant("young"), nodes("young", "198.51.100.11", "198.51.100.12"), gateway, node).Build()
	allocator := allocatorOf(t, public())
	require.NoError(t, allocator.load(t.Context()))
	changed := make(chan event.GenericEvent, 10)
	r := &targetReconciler{client: server, filter: &targetFilter{client: server, addresses: allocator, nodes: true}, changed: changed}
	look := func() {
		for range 2 { // the second reconcile sees the writes of the first
			_, err := r.Reconcile(t.Context(), reconcile.Request{})
			require.NoError(t, err)
		}
	}
	held := func(name string) []string {
		var a v1alpha1.Addresses
		require.NoError(t, server.Get(t.Context(), client.ObjectKey{Namespace: "tenant-" + name, Name: "default"}, &a))
		return a.Status.Held
	}
	look()
	require.Equal(t, []string{"198.51.100.11", "198.51.100.12"}, held("young"))
	require.Empty(t, changed)
	require.NoError(t, server.Create(context.Background(), nodes("old", "198.51.100.1", "198.51.100.2", "198.51.100.11", "198.51.100.21")))
	look()
	require.Equal(t, []string{"198.51.100.11", "198.51.100.12"}, held("young"), "those that were there first")
	require.Equal(t, []string{"198.51.100.21"}, held("old"))
	require.Equal(t, "tenant-old", (<-changed).Object.GetNamespace())
	require.Empty(t, changed)
	for ip, why := range map[string]string{"198.51.100.1": "gateway g1", "198.51.100.2": "Node n1", "198.51.100.11": "another tenant's node"} {
		require.Contains(t, r.filter.refusedIn("tenant-old"), ip+" is ")
		require.Contains(t, r.filter.refusedIn("tenant-old"), why)
	}
	require.Equal(t, "default[]", r.filter.refusedIn("tenant-young"))
}

func TestOnlyOwnTargetsOfALoadBalancerCauseAnEvaluation(t *testing.T) {
	shares := &v1alpha1.LoadBalancer{}
	shares.Spec.Endpoints = []v1alpha1.LoadBalancerEndpoints{{AddressesReference: &v1alpha1.AddressesReference{Name: "default"}}}
	other := shares.DeepCopy()
	other.Generation, other.Spec.Ports = 2, []v1alpha1.LoadBalancerPort{{Port: 80}}
	own := other.DeepCopy()
	own.Generation, own.Spec.Endpoints = 3, []v1alpha1.LoadBalancerEndpoints{{Addresses: []v1alpha1.EndpointAddress{{IP: "198.51.100.11"}}}}
	require.False(t, ownTargetsDiffer.Create(event.CreateEvent{Object: shares}))
	require.True(t, ownTargetsDiffer.Create(event.CreateEvent{Object: own}))
	require.False(t, ownTargetsDiffer.Update(event.UpdateEvent{ObjectOld: shares, ObjectNew: other}))
	require.True(t, ownTargetsDiffer.Update(event.UpdateEvent{ObjectOld: other, ObjectNew: own}))
	require.True(t, ownTargetsDiffer.Update(event.UpdateEvent{ObjectOld: own, ObjectNew: other}))
	require.False(t, ownTargetsDiffer.Delete(event.DeleteEvent{Object: shares}))
	require.True(t, ownTargetsDiffer.Delete(event.DeleteEvent{Object: own}))
}
