package hubhosts

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
)

func TestOfANodeAddressesAndCordonAreKeptAndNothingElse(t *testing.T) {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: "7", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"large": "text"}},
		Spec:       corev1.NodeSpec{Unschedulable: true, PodCIDR: "10.0.0.0/24"},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}, Images: []corev1.ContainerImage{{Names: []string{"image"}}}},
	}
	for object, by := range Cached() {
		require.IsType(t, node, object)
		kept, err := by.Transform(node)
		require.NoError(t, err)
		require.Equal(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: "7"}, Spec: corev1.NodeSpec{Unschedulable: true},
			Status: corev1.NodeStatus{Addresses: node.Status.Addresses}}, kept)
		other, err := by.Transform("a tombstone")
		require.NoError(t, err)
		require.Equal(t, "a tombstone", other)
	}
}

func TestANodesAddressesAreThoseAmongItsNamesAndAddresses(t *testing.T) {
	node := &corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeExternalIP, Address: "2001:db8::1"},
		{Type: corev1.NodeExternalIP, Address: "::ffff:192.0.2.9"},
	}}}
	require.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.9")}, NodeAddresses(node))
	require.Empty(t, ParseAddresses(nil))
}

func TestNodesAreReadableOnlyIfTheAPIServerHasListedThem(t *testing.T) {
	for name, c := range map[string]struct {
		answer error
		want   bool
		known  bool
	}{
		"it lists them":          {nil, true, true},
		"it forbids it":          {apierrors.NewForbidden(corev1.Resource("nodes"), "", errors.New("no rule")), false, true},
		"it does not run":        {errors.New("connection refused"), false, false},
		"it does not answer":     {context.DeadlineExceeded, false, false},
		"it answers for another": {apierrors.NewUnauthorized("no token"), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := CanReadNodes(t.Context(), listsNodes(t, c.answer))
			require.Equal(t, c.want, got)
			if c.known {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, c.answer)
				require.ErrorContains(t, err, "list Nodes: ")
			}
		})
	}
}

// listsNodes is a reader that answers with an error, and expects a bounded question.
func listsNodes(t *testing.T, answer error) client.Reader {
	return fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, _ client.WithWatch, _ client.ObjectList, _ ...client.ListOption) error {
		deadline, bounded := ctx.Deadline()
		require.True(t, bounded && time.Until(deadline) <= readTimeout)
		return answer
	}}).Build()
}

func TestAHostsOwnAddressesAreThoseOfAllItsInterfacesThatOthersCanName(t *testing.T) {
	var own []netip.Addr
	var errs []error
	preflighttest.InNetworkNamespace(t, func() {
		errs = append(errs, preflighttest.Plug("eth0", "198.51.100.7/24", "2001:db8::7/64"), preflighttest.Plug("kube-ipvs0", "10.96.0.10/32", "198.51.100.7/32"))
		own = LocalAddresses()
	})
	require.NoError(t, errors.Join(errs...))
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}, own)
}
