package ccm

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// local is the Service with externalTrafficPolicy Local.
func local() *corev1.Service {
	return web(func(s *corev1.Service) {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 32000
	})
}

// node is a node with these internal addresses.
func node(name string, ips ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, ip := range ips {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	return n
}

// slice returns an EndpointSlice of the Service, with an endpoint for each state, such as "n1 ready". The states are ready, unready, terminating (still
// serving) and gone (not serving).
func slice(name string, endpoints map[string]string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4}
	for node, state := range endpoints {
		ready, serving, terminating := state == "ready", state == "ready" || state == "terminating", state == "terminating" || state == "gone"
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}})
	}
	return s
}

// targets returns the addresses of nodes in the LoadBalancer itself.
func (c *clusters) targets() []string {
	c.Helper()
	own := c.onHub().Spec.Endpoints[0].LocalAddresses
	require.NotNil(c, own, "an absent list would make all nodes targets")
	ips := []string{}
	for _, a := range *own {
		ips = append(ips, a.IP)
	}
	return ips
}

func TestAServiceOfPolicyLocalHasTheNodesWithAReadyPodAsTargets(t *testing.T) {
	excluded := node("n4", "198.51.100.14")
	excluded.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""}
	for name, c := range map[string]struct {
		slices []*discoveryv1.EndpointSlice
		is     []string
	}{
		"no pod":                                {nil, []string{}},
		"ready pods on two nodes":               {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n1": "ready", "n2": "ready"})}, []string{"198.51.100.11", "198.51.100.12"}},
		"in two slices":                         {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n1": "ready"}), slice("b", map[string]string{"n2": "ready"})}, []string{"198.51.100.11", "198.51.100.12"}},
		"one is not ready":                      {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n1": "unready", "n2": "ready"})}, []string{"198.51.100.12"}},
		"one terminates":                        {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n1": "terminating", "n2": "ready"})}, []string{"198.51.100.12"}},
		"all terminate, and one serves still":   {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n1": "terminating", "n2": "gone"})}, []string{"198.51.100.11"}},
		"on a node that is excluded":            {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n4": "ready"})}, []string{}},
		"on a node that is not there yet":       {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n9": "ready", "n1": "ready"})}, []string{"198.51.100.11"}},
		"on a node without an internal address": {[]*discoveryv1.EndpointSlice{slice("a", map[string]string{"n3": "ready", "n1": "ready"})}, []string{"198.51.100.11"}},
	} {
		t.Run(name, func(t *testing.T) {
			objects := []client.Object{local(), node("n1", "198.51.100.11"), node("n2", "198.51.100.12"), node("n3"), excluded.DeepCopy()}
			for _, s := range c.slices {
				objects = append(objects, s.DeepCopy())
			}
			k := newClusters(t, objects...)
			k.settle()
			require.Equal(t, c.is, k.targets())
			require.Equal(t, int32(32000), k.onHub().Spec.HealthCheckNodePort, "gateways ask kube-proxy there")
			require.Equal(t, v1alpha1.DefaultAddressesName, k.onHub().Spec.Endpoints[0].AddressesReference.Name)
			k.requireNothing()
		})
	}
}

func TestSlicesOfOtherServicesAndNamespacesAreIgnored(t *testing.T) {
	other, elsewhere := slice("other", map[string]string{"n1": "ready"}), slice("elsewhere", map[string]string{"n1": "ready"})
	other.Labels[discoveryv1.LabelServiceName], elsewhere.Namespace = "other", "kiosk"
	c := newClusters(t, local(), node("n1", "198.51.100.11"), other, elsewhere)
	c.settle()
	require.Empty(t, c.targets())
}

func TestTargetsOfAServiceFollowItsPodsAndTheirNodes(t *testing.T) {
	one := slice("a", map[string]string{"n1": "ready"})
	n1 := node("n1", "198.51.100.11", "2001:db8:1::11")
	c := newClusters(t, local(), n1, node("n2", "198.51.100.12"), one)
	c.serve()
	require.Equal(t, []string{"198.51.100.11", "2001:db8:1::11"}, c.targets())

	require.NoError(t, c.tenant.Create(t.Context(), slice("b", map[string]string{"n2": "ready"})))
	c.settle()
	require.Equal(t, []string{"198.51.100.11", "198.51.100.12", "2001:db8:1::11"}, c.targets())

	n1.Status.Addresses = n1.Status.Addresses[:1]
	n1.Status.Addresses[0].Address = "198.51.100.21"
	require.NoError(t, c.tenant.Status().Update(t.Context(), n1))
	c.settle()
	require.Equal(t, []string{"198.51.100.12", "198.51.100.21"}, c.targets())

	require.NoError(t, c.tenant.Delete(t.Context(), n1))
	c.settle()
	require.Equal(t, []string{"198.51.100.12"}, c.targets())

	require.NoError(t, c.tenant.Delete(t.Context(), slice("b", nil)))
	c.settle()
	require.Equal(t, []string{}, c.targets())
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer, "the Service keeps its address")
}

func TestAServiceChangedToPolicyClusterHasAllNodesAsTargets(t *testing.T) {
	c := newClusters(t, local(), node("n1", "198.51.100.11"), slice("a", map[string]string{"n1": "ready"}))
	c.serve()
	c.edit(func(s *corev1.Service) {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyCluster, 0
	})
	c.settle()
	require.Nil(t, c.onHub().Spec.Endpoints[0].LocalAddresses)
	require.Zero(t, c.onHub().Spec.HealthCheckNodePort)
}

func TestARefusedTargetIsExcludedAndNamed(t *testing.T) {
	c := newClusters(t, local(), node("n1", "198.51.100.11", "169.254.1.0"), slice("a", map[string]string{"n1": "ready"}))
	c.serve()
	require.Equal(t, []string{"198.51.100.11"}, c.targets())
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.settle()
	require.Equal(t, says(metav1.ConditionTrue, translate.ReasonNodesLeftOut, "served, but: left out of the targets: node 169.254.1.0 is a link-local address"), c.condition())
}

// There is no event when a name begins to resolve.
func TestHostNamesOfAServiceOfPolicyLocalAreRetriedUntilTheyResolve(t *testing.T) {
	n1 := node("n1")
	n1.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n1.example.com."}}
	c := newClusters(t, local(), n1, slice("a", map[string]string{"n1": "ready"}))
	c.r.config.NodeAddressType, c.r.config.Resolver = "Hostname", names{}.resolver(t)
	result, err := c.reconcile()
	require.NoError(t, err)
	require.Equal(t, resolveEvery, result.RequeueAfter)
	require.Empty(t, c.targets())
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.settle()
	require.Contains(t, c.condition().Message, "node name n1.example.com. does not resolve: no such host")

	c.r.config.Resolver = names{"n1.example.com": "198.51.100.11"}.resolver(t)
	result, err = c.reconcile()
	require.NoError(t, err)
	require.Zero(t, result.RequeueAfter)
	require.Equal(t, []string{"198.51.100.11"}, c.targets())
	require.Equal(t, says(metav1.ConditionTrue, "Ready", "served"), c.condition())
}
