package ccm

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

func TestAServiceHasTheAddressesAndTheConditionOfItsLoadBalancer(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	mode := corev1.LoadBalancerIPModeProxy
	lb := c.onHub()
	lb.Status.LoadBalancer = corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.1", IPMode: &mode}, {IP: "2001:db8:f::1", IPMode: &mode}}}
	require.NoError(t, c.hub.Status().Update(t.Context(), lb))
	c.settle()
	require.Equal(t, lb.Status.LoadBalancer, c.service().Status.LoadBalancer, "ipMode tells kube-proxy whether to serve pods of this cluster itself")
	require.Equal(t, "Normal EnsuredLoadBalancer Ensured load balancer", all(c.recorder))

	c.answer(metav1.ConditionFalse, "LimitReached", "the tenant has 10 of 10 addresses")
	c.settle()
	require.Empty(t, c.service().Status.LoadBalancer.Ingress, "the hub has released the addresses")
	require.Equal(t, says(metav1.ConditionFalse, "LimitReached", "the tenant has 10 of 10 addresses"), c.condition())
	require.Equal(t, "Warning SyncLoadBalancerFailed the tenant has 10 of 10 addresses", all(c.recorder))
	c.requireNothing()
}

func TestAServiceKeepsItsAddressWhileItsLoadBalancerHasAFault(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	c.answer(metav1.ConditionFalse, v1alpha1.ReasonConnectionsFail, "gateway g1: connections are refused", "203.0.113.1")
	c.settle()
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer, "clients have it")
	require.Equal(t, says(metav1.ConditionFalse, v1alpha1.ReasonConnectionsFail, "gateway g1: connections are refused"), c.condition())
	c.requireNothing()
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.settle()
	require.Equal(t, "Normal Ready served again", all(c.recorder))
}

func TestConditionsOfOthersStayInAServicesStatus(t *testing.T) {
	theirs := metav1.Condition{Type: "example.com/Fine", Status: metav1.ConditionTrue, Reason: "Fine", Message: "fine"}
	c := newClusters(t, web(func(s *corev1.Service) { s.Status.Conditions = []metav1.Condition{theirs} }))
	c.serve()
	require.NotNil(t, meta.FindStatusCondition(c.service().Status.Conditions, theirs.Type))
	c.edit(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	c.settle()
	c.settle()
	require.Equal(t, []metav1.Condition{theirs}, c.service().Status.Conditions)
}

// KubeLB's manager writes no conditions, only addresses.
func TestAServiceWithAnAddressOfKubeLBsManagerIsReady(t *testing.T) {
	c := newClusters(t, web())
	c.settle()
	lb := c.onHub()
	lb.Status.LoadBalancer = corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{Hostname: "lb.example.com"}}}
	require.NoError(t, c.hub.Status().Update(t.Context(), lb))
	c.settle()
	require.Equal(t, lb.Status.LoadBalancer, c.service().Status.LoadBalancer)
	require.Equal(t, says(metav1.ConditionTrue, "Ready", "an external address is assigned"), c.condition())
}

// T16: kube-proxy sends connections of pods to an address in a Service's status to this Service.
func TestAnAddressThatThisClusterDoesNotAcceptIsNotInTheStatus(t *testing.T) {
	c := newClusters(t, web())
	c.r.config.AcceptAddresses = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	c.serve()
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1", "10.96.0.10")
	c.settle()
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer)
	is := c.condition()
	require.Equal(t, metav1.ConditionFalse, is.Status)
	require.Equal(t, "AddressNotAccepted", is.Reason)
	require.Contains(t, is.Message, "10.96.0.10")
	require.Contains(t, is.Message, "--accept-addresses")
	require.Equal(t, "Warning SyncLoadBalancerFailed "+is.Message, all(c.recorder))
	c.requireNothing()
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.settle()
	require.Equal(t, says(metav1.ConditionTrue, "Ready", "served"), c.condition())
}

func TestAServiceThatIsGoneBeforeItsStatusIsWrittenIsNoError(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	c.answer(metav1.ConditionFalse, "PoolExhausted", "no address is free")
	c.refuse = func(request string) error {
		if request == "tenant: patch status of Service web" {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, "web")
		}
		return nil
	}
	c.settle()
	require.Empty(t, all(c.recorder), "there is nothing to make an event of")
}

func TestARefusalByTheHubIsReportedOnceWithItsMessage(t *testing.T) {
	c := newClusters(t, web())
	c.serve()
	c.edit(func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30081 })
	c.refuse = func(request string) error {
		if request == "hub: update LoadBalancer uid-of-web" {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "loadbalancers"}, "uid-of-web", errors.New("ValidatingAdmissionPolicy 'tenants.kubelb.k8c.io' denied the request"))
		}
		return nil
	}
	for i := range 3 {
		_, err := c.reconcile()
		require.ErrorContains(t, err, "denied the request", "the error causes a retry")
		require.Equal(t, i == 0, strings.Contains(all(c.recorder), "Warning SyncLoadBalancerFailed the management cluster did not accept the LoadBalancer: "), "%d", i)
	}
	is := c.condition()
	require.Equal(t, "HubRefused", is.Reason)
	require.Contains(t, is.Message, "denied the request")
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer, "what the hub has is served as before")
	c.refuse = func(string) error { return nil }
	c.settle()
	require.Equal(t, "Normal UpdatedLoadBalancer Updated load balancer\nNormal Ready served again", all(c.recorder))
}

func TestALongMessageOfTheHubIsCutInConditionsAndEvents(t *testing.T) {
	c := newClusters(t, web())
	c.settle()
	all(c.recorder)
	c.answer(metav1.ConditionFalse, "PoolExhausted", strings.Repeat("x", plain.MaxCondition))
	c.settle()
	require.LessOrEqual(t, len(c.condition().Message), plain.MaxCondition)
	require.LessOrEqual(t, len(all(c.recorder)), len("Warning SyncLoadBalancerFailed ")+plain.MaxNote)
}

func TestTheConditionOfAServedServiceAlsoNamesExcludedNodes(t *testing.T) {
	sctp := corev1.ServicePort{Name: "sctp", Port: 5000, NodePort: 30500, Protocol: corev1.ProtocolSCTP}
	c := newClusters(t, web(func(s *corev1.Service) { s.Spec.Ports = append(s.Spec.Ports, sctp) }))
	c.settle()
	c.answer(metav1.ConditionTrue, "Ready", "served", "203.0.113.1")
	c.settle()
	require.Len(t, c.onHub().Spec.Ports, 1)
	const why = "port sctp (5000): protocol SCTP cannot be load-balanced, only TCP and UDP"
	require.Equal(t, says(metav1.ConditionTrue, translate.ReasonUnsupportedProtocol, "served, but: "+why), c.condition())
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer)
	require.Contains(t, all(c.recorder), "Warning SyncLoadBalancerFailed "+why)
	c.requireNothing()

	c.answer(metav1.ConditionTrue, translate.ReasonNoNodesOfFamily, "served, but: 2001:db8:f::1 is not", "203.0.113.1")
	c.settle()
	require.Equal(t, says(metav1.ConditionTrue, translate.ReasonNoNodesOfFamily, "served, but: 2001:db8:f::1 is not; "+why), c.condition(), "the hub's message stays")
	require.Contains(t, all(c.recorder), "Warning UnAvailableLoadBalancer ")

	c.answer(metav1.ConditionFalse, "PoolExhausted", "no address is free")
	c.settle()
	require.Equal(t, says(metav1.ConditionFalse, "PoolExhausted", "no address is free"), c.condition(), "first things first")
}

// A Service never gets something else than it asks for.
func TestAnInvalidServiceHasNoLoadBalancerAndAReason(t *testing.T) {
	for reason, change := range map[string]func(*corev1.Service){
		translate.ReasonHeadless:            func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone },
		translate.ReasonUnsupportedProtocol: func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP },
		translate.ReasonInvalidSourceRange: func(s *corev1.Service) {
			s.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: "everybody"}
		},
		translate.ReasonInvalidAnnotation: func(s *corev1.Service) { s.Annotations = map[string]string{v1alpha1.AnnotationAddressPool: "-"} },
	} {
		t.Run(reason, func(t *testing.T) {
			refused := func(c *clusters) {
				is := c.condition()
				require.Equal(t, metav1.ConditionFalse, is.Status)
				require.Equal(t, reason, is.Reason)
				require.Contains(t, all(c.recorder), "Warning SyncLoadBalancerFailed "+is.Message)
				require.Nil(t, c.onHub())
				require.Empty(t, c.service().Status.LoadBalancer.Ingress)
				require.Equal(t, []string{cleanupFinalizer}, c.service().Finalizers)
				c.requireNothing()
			}
			c := newClusters(t, web(change))
			c.settle()
			refused(c)
			c.edit(func(s *corev1.Service) { s.Spec, s.Annotations = web().Spec, nil })
			c.serve()

			c.edit(change)
			c.settle()
			refused(c)
		})
	}
}

// A typing error in one setting costs a Service neither its address nor its traffic.
func TestAnInvalidSettingOfAServedServiceKeepsItsValueWhileOthersChange(t *testing.T) {
	annotate := func(forwarding, pool string) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Annotations = map[string]string{v1alpha1.AnnotationForwarding: forwarding, v1alpha1.AnnotationAddressPool: pool}
		}
	}
	c := newClusters(t, web(annotate("direct", "one")))
	c.serve()
	c.edit(annotate("diretc", "two"))
	c.settle()
	require.Equal(t, "direct", c.onHub().Spec.Forwarding)
	require.Equal(t, "two", c.onHub().Spec.AddressPool)
	require.Equal(t, ingress("203.0.113.1"), c.service().Status.LoadBalancer)
	is := c.condition()
	require.Equal(t, metav1.ConditionTrue, is.Status)
	require.Equal(t, translate.ReasonInvalidForwarding, is.Reason)
	require.Regexp(t, `^served, but: .*"diretc".*; until then the last valid value stays in effect$`, is.Message)
	require.Contains(t, all(c.recorder), "Warning SyncLoadBalancerFailed metadata.annotations."+v1alpha1.AnnotationForwarding+` is "diretc"`)
	c.requireNothing()

	c.edit(annotate("transparent", "two"))
	c.settle()
	require.Equal(t, "transparent", c.onHub().Spec.Forwarding)
	require.Equal(t, says(metav1.ConditionTrue, "Ready", "served"), c.condition())
}

func TestANewServiceWaitsUntilItsSettingIsValid(t *testing.T) {
	wrong := func(s *corev1.Service) { s.Annotations = map[string]string{v1alpha1.AnnotationForwarding: "diretc"} }
	c := newClusters(t, web(wrong))
	c.settle()
	require.Nil(t, c.onHub())
	require.Equal(t, translate.ReasonInvalidForwarding, c.condition().Reason)
	c.edit(func(s *corev1.Service) { s.Annotations = nil })
	c.serve()

	// It does not keep a setting of an object that is being deleted.
	c.editOnHub(func(lb *v1alpha1.LoadBalancer) { lb.Finalizers = []string{v1alpha1.CleanupFinalizer} })
	require.NoError(t, c.hub.Delete(t.Context(), c.onHub()))
	c.edit(wrong)
	c.settle()
	require.Equal(t, says(metav1.ConditionFalse, translate.ReasonInvalidForwarding, c.condition().Message), c.condition())
	require.Empty(t, c.service().Status.LoadBalancer.Ingress)
}

func TestAFaultOfTheNodesListConcernsServicesOfAllNodesOnly(t *testing.T) {
	local := func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	for name, c := range map[string]struct {
		change []func(*corev1.Service)
		told   bool
	}{"Cluster": {nil, true}, "Local": {[]func(*corev1.Service){local}, false}} {
		t.Run(name, func(t *testing.T) {
			k := newClusters(t, web(c.change...))
			k.serve()
			k.r.nodes.set(translate.NodesLeftOut([]string{"node odd: 169.254.1.0 is a link-local address"}))
			k.settle()
			require.Equal(t, c.told, strings.Contains(k.condition().Message, "169.254.1.0"), k.condition().Message)
			k.requireNothing()
			k.r.nodes.set(translate.Problem{})
			k.settle()
			require.Equal(t, says(metav1.ConditionTrue, "Ready", "served"), k.condition())
		})
	}
}
