package ccm

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
)

// nodesOnHub reconciles a tenant's nodes to a hub.
type nodesOnHub struct {
	*testing.T
	tenant, hub client.Client
	events      *events.FakeRecorder
	r           *addressesReconciler
	refusal     error
}

func tellNodes(t *testing.T) *nodesOnHub {
	scheme, err := newScheme()
	require.NoError(t, err)
	n := &nodesOnHub{T: t, events: events.NewFakeRecorder(10), tenant: fake.NewClientBuilder().WithScheme(scheme).Build()}
	n.hub = fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.UpdateOption) error {
			return errors.Join(n.refusal, c.Update(ctx, o, options...))
		}}).Build()
	leftOut, err := newLeftOut(prometheus.NewRegistry())
	require.NoError(t, err)
	n.r = &addressesReconciler{tenant: n.tenant, hub: n.hub, config: Config{HubNamespace: "tenant-a", NodeAddressType: "InternalIP"}, events: n.events, nodes: newNodesProblem(), leftOut: leftOut, reported: map[string]string{}}
	return n
}

func (n *nodesOnHub) node(name string, ips ...string) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, ip := range ips {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	require.NoError(n, n.tenant.Create(n.Context(), node))
	return node
}

func (n *nodesOnHub) look() error {
	_, err := n.r.Reconcile(n.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.DefaultAddressesName}})
	return err
}

func (n *nodesOnHub) listed() (ips []string) {
	var a v1alpha1.Addresses
	require.NoError(n, n.hub.Get(n.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.DefaultAddressesName}, &a))
	for _, address := range a.Spec.Addresses {
		ips = append(ips, address.IP)
	}
	return ips
}

func TestARefusedAddressDoesNotAffectOtherNodes(t *testing.T) {
	n := tellNodes(t)
	n.node("n1", "198.51.100.11")
	odd := n.node("odd", "198.51.100.13", "169.254.1.0")
	require.NoError(t, n.look())
	require.Equal(t, []string{"198.51.100.11", "198.51.100.13"}, n.listed())
	const why = "node odd: 169.254.1.0 is a link-local address"
	require.Equal(t, "left out of the targets: "+why, n.r.nodes.get()[0].Message)
	require.True(t, n.r.nodes.get()[0].Partial)
	require.Len(t, n.r.nodes.changed, 1, "Services are reconciled")
	require.Equal(t, "Warning NodesLeftOut left out of load balancers: "+why, <-n.events.Events)
	require.EqualValues(t, 1, testutil.ToFloat64(n.r.leftOut))

	<-n.r.nodes.changed
	n.node("n2", "198.51.100.12")
	require.NoError(t, n.look())
	require.Equal(t, []string{"198.51.100.11", "198.51.100.12", "198.51.100.13"}, n.listed(), "nodes come and go")
	require.Empty(t, n.events.Events, "there is no second event")
	require.Empty(t, n.r.nodes.changed)

	require.NoError(t, n.tenant.Delete(t.Context(), odd))
	require.NoError(t, n.look())
	require.Empty(t, n.r.nodes.get())
	require.Len(t, n.r.nodes.changed, 1)
	require.Zero(t, testutil.ToFloat64(n.r.leftOut))
}

func TestServicesReportThatTheHubRefusesTheNodes(t *testing.T) {
	n := tellNodes(t)
	n.node("n1", "198.51.100.11")
	require.NoError(t, n.look())
	n.refusal = errors.New("quota exceeded")
	n.node("n2", "198.51.100.12")
	require.ErrorContains(t, n.look(), "quota exceeded", "the error causes a retry")
	require.Equal(t, "the management cluster did not accept the nodes' addresses, and may still have the former ones: quota exceeded", n.r.nodes.get()[0].Message)
	n.refusal = nil
	require.NoError(t, n.look())
	require.Empty(t, n.r.nodes.get())
}
