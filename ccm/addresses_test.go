package ccm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// object returns the Addresses object on the hub.
func (n *nodesOnHub) object() *v1alpha1.Addresses {
	n.Helper()
	a := &v1alpha1.Addresses{}
	require.NoError(n, n.hub.Get(n.Context(), client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.DefaultAddressesName}, a))
	return a
}

// edit changes a node as its kubelet or an operator does.
func (n *nodesOnHub) edit(node *corev1.Node, change func(*corev1.Node)) {
	n.Helper()
	change(node)
	status := node.Status.DeepCopy()
	require.NoError(n, n.tenant.Update(n.Context(), node))
	node.Status = *status
	require.NoError(n, n.tenant.Status().Update(n.Context(), node))
	require.NoError(n, n.look())
}

func TestTheAddressesOnTheHubFollowTheEligibleNodes(t *testing.T) {
	n := tellNodes(t)
	n1, n2 := n.node("n1", "198.51.100.12", "2001:db8:1::11"), n.node("n2", "198.51.100.11")
	require.NoError(t, n.look())
	require.Equal(t, []string{"198.51.100.11", "198.51.100.12", "2001:db8:1::11"}, n.listed(), "sorted, so that nothing is written when nothing differs")

	n.edit(n1, func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""} })
	require.Equal(t, []string{"198.51.100.11"}, n.listed(), "an operator excludes it")
	n.edit(n1, func(n *corev1.Node) { n.Labels = nil })
	require.Len(t, n.listed(), 3)
	n.edit(n1, func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}} })
	require.Equal(t, []string{"198.51.100.11"}, n.listed(), "the autoscaler is about to delete it")
	n.edit(n1, func(n *corev1.Node) { n.Spec.Taints = nil })
	n.edit(n1, func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse}}
		n.Spec.Unschedulable = true
	})
	require.Len(t, n.listed(), 3, "health checks of gateways decide about a node that is not ready")
	n.edit(n1, func(n *corev1.Node) { n.Status.Addresses[0].Type = corev1.NodeExternalIP })
	require.Equal(t, []string{"198.51.100.11", "2001:db8:1::11"}, n.listed(), "of the type of --node-address-type only")

	require.NoError(t, n.tenant.Delete(t.Context(), n1))
	require.NoError(t, n.tenant.Delete(t.Context(), n2))
	require.NoError(t, n.look())
	require.Empty(t, n.listed(), "an empty list, so that connections are refused and not sent to hosts that others may own soon")
	require.Empty(t, n.r.nodes.get())
}

func TestTheAddressesAreWrittenOnlyIfTheyDiffer(t *testing.T) {
	n := tellNodes(t)
	n1 := n.node("n1", "198.51.100.11")
	require.NoError(t, n.look())
	before := n.object().ResourceVersion
	n.edit(n1, func(n *corev1.Node) { n.Annotations = map[string]string{"example.com/seen": "now"} })
	require.Equal(t, before, n.object().ResourceVersion)
}

func TestAddressesThatAnotherProgramChangesAreRestored(t *testing.T) {
	n := tellNodes(t)
	n.node("n1", "198.51.100.11")
	require.NoError(t, n.look())
	a := n.object()
	a.Labels = map[string]string{"example.com/team": "net"}
	a.Spec.Addresses = append(a.Spec.Addresses, v1alpha1.EndpointAddress{IP: "192.0.2.99"})
	a.Status.Held = []string{"198.51.100.11"}
	require.NoError(t, n.hub.Update(t.Context(), a))
	require.NoError(t, n.look())
	require.Equal(t, []string{"198.51.100.11"}, n.listed())
	require.Equal(t, []string{"198.51.100.11"}, n.object().Status.Held, "the controllers' record stays")
	require.Equal(t, a.Labels, n.object().Labels)
	require.NoError(t, n.hub.Delete(t.Context(), a))
	require.NoError(t, n.look())
	require.Equal(t, []string{"198.51.100.11"}, n.listed())
}

func TestOtherAddressesObjectsOfTheTenantAreNotChanged(t *testing.T) {
	n := tellNodes(t)
	other := &v1alpha1.Addresses{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "by-hand"}}
	require.NoError(t, n.hub.Create(t.Context(), other))
	_, err := n.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(other)})
	require.NoError(t, err)
	require.NoError(t, n.hub.Get(t.Context(), client.ObjectKeyFromObject(other), other))
	require.Empty(t, other.Spec.Addresses)
}

func TestAConflictOnTheAddressesIsRetriedWithoutAProblem(t *testing.T) {
	n := tellNodes(t)
	n.node("n1", "198.51.100.11")
	require.NoError(t, n.look())
	n.refusal = apierrors.NewConflict(schema.GroupResource{Resource: "addresses"}, "default", errors.New("changed"))
	n.node("n2", "198.51.100.12")
	require.Error(t, n.look())
	require.Empty(t, n.r.nodes.get())
	require.Empty(t, n.r.nodes.changed)
}

func TestANodeGetsAnEventWhenItsExcludedAddressesChange(t *testing.T) {
	n := tellNodes(t)
	odd := n.node("odd", "169.254.1.0")
	require.NoError(t, n.look())
	require.Contains(t, all(n.events), "169.254.1.0 is a link-local address")
	n.edit(odd, func(n *corev1.Node) { n.Status.Addresses[0].Address = "127.0.0.1" })
	require.Contains(t, all(n.events), "127.0.0.1 is a loopback address")
	n.edit(odd, func(n *corev1.Node) { n.Status.Addresses[0].Address = "198.51.100.11" })
	require.Empty(t, n.events.Events)
	n.edit(odd, func(n *corev1.Node) { n.Status.Addresses[0].Address = "127.0.0.1" })
	require.Contains(t, all(n.events), "127.0.0.1 is a loopback address")
}

// Clusters with autoscaling make nodes with new names each day.
func TestADeletedNodeUsesNoMemory(t *testing.T) {
	n := tellNodes(t)
	odd := n.node("odd", "169.254.1.0")
	require.NoError(t, n.look())
	require.Contains(t, all(n.events), "169.254.1.0 is a link-local address")
	require.NoError(t, n.tenant.Delete(t.Context(), odd))
	require.NoError(t, n.look())
	require.Empty(t, n.r.reported)
	n.node("odd", "169.254.1.0")
	require.NoError(t, n.look())
	require.Contains(t, all(n.events), "169.254.1.0 is a link-local address", "it is another node")
}

// The hub's schema refuses the whole list if it has one address too many.
func TestNodesBeyondTheHubsLimitAreExcludedAndCounted(t *testing.T) {
	n := tellNodes(t)
	var nodes []translate.Node
	address := netip.MustParseAddr("10.0.0.1")
	for i := range translate.MaxTargets + 3 {
		nodes = append(nodes, translate.Node{Name: fmt.Sprint("n", i), Addresses: []translate.NodeAddress{{Type: "InternalIP", Address: address.String()}}})
		address = address.Next()
	}
	kept, left := n.r.addresses(t.Context(), nodes)
	require.Len(t, kept, translate.MaxTargets)
	require.Equal(t, "10.0.0.1", kept[0].IP)
	require.Len(t, left, 1)
	require.Contains(t, left[""][0], "3 more than the 5000 addresses that the management cluster takes")
	n.r.setProblem(left, nil)
	require.Contains(t, n.r.nodes.get()[0].Message, "3 more than the 5000 addresses")
	require.EqualValues(t, 1, testutil.ToFloat64(n.r.leftOut))
}

// names is a DNS server: each name with its address. It fails for other names.
type names map[string]string

// resolver returns a resolver that uses the server.
func (n names) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { server.Close() })
	go func() {
		question := make([]byte, 512)
		for {
			size, from, err := server.ReadFrom(question)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(n.answer(question[:size]), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// answer is a DNS message (RFC 1035): the question, and for type A the address.
func (n names) answer(question []byte) []byte {
	const header, typeA, nameError = 12, 1, 3
	var labels []string
	end := header
	for question[end] != 0 {
		size := int(question[end])
		labels = append(labels, string(question[end+1:end+1+size]))
		end += 1 + size
	}
	end++
	message := append([]byte{question[0], question[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question[header:end+4]...)
	address, known := n[strings.Join(labels, ".")]
	switch {
	case !known:
		message[3] |= nameError
	case question[end+1] == typeA:
		message[7] = 1
		message = append(message, 0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 60, 0, 4)
		message = append(message, netip.MustParseAddr(address).AsSlice()...)
	}
	return message
}

// The hub does not resolve names of tenants. With --node-address-type=Hostname the CCM does.
func TestHostNamesOfNodesAreResolvedAndRetriedUntilTheyResolve(t *testing.T) {
	dns := names{"n1.example.com": "198.51.100.11"}
	n := tellNodes(t)
	n.r.config.NodeAddressType, n.r.config.Resolver = "Hostname", dns.resolver(t)
	for _, name := range []string{"n1", "n2"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name + ".example.com."}, {Type: corev1.NodeInternalIP, Address: "198.51.100.99"}}
		require.NoError(t, n.tenant.Create(t.Context(), node))
	}
	result, err := n.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.DefaultAddressesName}})
	require.NoError(t, err)
	require.Equal(t, resolveEvery, result.RequeueAfter)
	require.Equal(t, []string{"198.51.100.11"}, n.listed())
	const why = "node name n2.example.com. does not resolve: no such host"
	require.Equal(t, "Warning NodesLeftOut left out of load balancers: "+why, all(n.events))
	require.Contains(t, n.r.nodes.get()[0].Message, why)
}

func TestHostNamesThatResolveAreNotLookedUpAgain(t *testing.T) {
	n := tellNodes(t)
	n.r.config.NodeAddressType, n.r.config.Resolver = "Hostname", names{"n1.example.com": "198.51.100.11"}.resolver(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n1.example.com."}}}}
	require.NoError(t, n.tenant.Create(t.Context(), node))
	result, err := n.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "tenant-a", Name: v1alpha1.DefaultAddressesName}})
	require.NoError(t, err)
	require.Zero(t, result.RequeueAfter)
	require.Empty(t, n.r.nodes.get())
}

func TestTheReasonOfAFailedLookupIsAlwaysTheSameText(t *testing.T) {
	require.Equal(t, "the DNS look-up failed; see the log of kubelb-ccm", lookupFailure(errors.New("read udp 192.0.2.1:43211->192.0.2.53:53: connection refused")))
	require.Equal(t, "the DNS look-up failed; see the log of kubelb-ccm", lookupFailure(&net.DNSError{Err: "server misbehaving"}))
}
