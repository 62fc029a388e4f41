package inspect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/connect/connecttest"
)

// checkResetting checks the LoadBalancer of a healthy hub, whose connections are accepted, and then reset.
func checkResetting(t *testing.T, change func(*Snapshot)) Check {
	t.Helper()
	h := healthy()
	h.Gateways[0].Status.Tries = &v1alpha1.GatewayTries{Answered: 1}
	lb := &h.LoadBalancers[0]
	lb.Status.Addresses[0].Address = "127.0.0.1"
	port := connecttest.Serve(t, netip.MustParseAddrPort("127.0.0.1:0"), connecttest.Reset).Port()
	lb.Spec.Ports = []v1alpha1.LoadBalancerPort{{Port: int32(port), Protocol: corev1.ProtocolTCP}}
	change(h)
	checks := h.Check(t.Context(), []*v1alpha1.LoadBalancer{lb})
	require.Len(t, checks, 1)
	return checks[0]
}

func TestAResetConnectionIsNoAnswerIfNoGatewayTriesThePort(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*v1alpha1.LoadBalancerSpec)
		result CheckResult
	}{
		"gateways try it":      {func(*v1alpha1.LoadBalancerSpec) {}, Answers},
		"its mode is direct":   {func(s *v1alpha1.LoadBalancerSpec) { s.Forwarding = "direct" }, Fails},
		"it has source ranges": {func(s *v1alpha1.LoadBalancerSpec) { s.LoadBalancerSourceRanges = []string{"127.0.0.0/8"} }, Expected},
	} {
		check := checkResetting(t, func(h *Snapshot) { c.change(&h.LoadBalancers[0].Spec) })
		require.Equal(t, c.result, check.Result, "%s: %s", name, check.Message)
	}
}

func TestAFailureIsExpectedWhileNoNodeHasAReadyPod(t *testing.T) {
	check := checkResetting(t, func(h *Snapshot) { h.LoadBalancers[0].Spec.Endpoints[0].LocalAddresses = &[]v1alpha1.EndpointAddress{} })
	require.Equal(t, Expected, check.Result, check.Message)
	require.Contains(t, check.Message, "as expected: externalTrafficPolicy is Local, and no node has a ready pod of the Service")
}

// chooseOtherSite makes the pool of the LoadBalancer choose gateways with the label site=two. No gateway has the label yet.
func chooseOtherSite(h *Snapshot) {
	h.Pools[0].Spec.Addresses = []string{"127.0.0.0/28"}
	h.Pools[0].Spec.GatewaySelector = &metav1.LabelSelector{MatchLabels: map[string]string{"site": "two"}}
}

// addGateway adds gateway g2, a copy of g1.
func (h *Snapshot) addGateway() *v1alpha1.Gateway {
	g := h.Gateways[0].DeepCopy()
	g.Name = "g2"
	h.Gateways, h.Leases["g2"] = append(h.Gateways, *g), h.Leases["g1"]
	return &h.Gateways[1]
}

// crash makes the Lease of a gateway an hour old.
func (h *Snapshot) crash(name string) {
	renewed := metav1.NewMicroTime(now.Add(-time.Hour))
	h.Leases[name] = coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}
}

func TestAResetCountsAsAnAnswerOnlyIfAWorkingGatewayHasTriedThePort(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Snapshot)
		result CheckResult
		why    string
	}{
		"its manager has died":      {func(h *Snapshot) { h.crash("g1") }, Fails, "no working gateway answers for the address; gateway g1 is gone"},
		"it has no Lease":           {func(h *Snapshot) { h.Leases = nil }, Fails, "gateway g1 has no Lease"},
		"it drains":                 {func(h *Snapshot) { h.Gateways[0].Spec.Draining = true }, Fails, "no working gateway answers for the address"},
		"its object is out of date": {func(h *Snapshot) { h.Gateways[0].Status.Conditions[0].Reason = v1alpha1.ReasonNotHeard }, Fails, "gateway g1 has not reported its state yet"},
		"its dataplane has failed": {func(h *Snapshot) {
			h.Gateways[0].Status.Conditions[0] = is(v1alpha1.ConditionReady, metav1.ConditionFalse, "BackendFailed", "gone")
		}, Fails, "BackendFailed"},
		"the pool chooses another one":      {chooseOtherSite, Fails, "no working gateway answers for the address"},
		"another one is elected, and tries": {electsAnother, Answers, "the gateways that try the port know of no failure"},
		"another one is elected, and died": {func(h *Snapshot) {
			h.addGateway()
			h.crash("g2")
			h.Gateways[0].Status.Elects, h.Gateways[0].Status.Candidates = true, []string{"g2"}
		}, Fails, "gateway g2 is gone"},
		"another one died, and a router may still send to it": {func(h *Snapshot) { h.addGateway(); h.crash("g2") }, Untried, "gateway g2 is gone"},
		"it does not try": {func(h *Snapshot) { h.Gateways[0].Status.Tries = nil }, Fails, "gateway g1 does not try its ports"},
		"it cannot try":   {func(h *Snapshot) { h.Gateways[0].Status.Tries.Problem = "no kubelb-watch" }, Fails, "gateway g1 cannot try its ports: no kubelb-watch"},
		"it knows of a failure that no controller has noted": {func(h *Snapshot) {
			h.Gateways[0].Status.Tries.Failures = []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/uid-1", Record: "frontend TCP 127.0.0.1:80", Message: "connections are refused"}}
		}, Fails, "gateway g1: frontend TCP 127.0.0.1:80: connections are refused"},
		"it names no more failures": {func(h *Snapshot) { h.Gateways[0].Status.Tries.Unlisted = []string{"tenant-a"} }, Fails, "more failures in namespace tenant-a"},
		"ports are untried":         {func(h *Snapshot) { h.Gateways[0].Status.Tries.Untried = 2 }, Untried, "gateway g1 may not have tried the port: it has not tried 2 of its ports yet"},
		"connections are limited": {func(h *Snapshot) {
			limit := int32(10)
			h.Tenants[0].Spec.Limits.ConnectionsPerPort = &limit
		}, Untried, "Tenant a has a limit of connections, which may be the cause"},
		"it was announced just now": {func(h *Snapshot) {
			for i := range h.LoadBalancers[0].Status.Conditions {
				h.LoadBalancers[0].Status.Conditions[i].LastTransitionTime = metav1.NewTime(now.Add(-time.Second))
			}
		}, Untried, "the LoadBalancer has been announced for less than 20s"},
		"it was changed just now": {func(h *Snapshot) { h.LoadBalancers[0].Generation = 2 }, Untried, "gateways may not have taken the last change of the LoadBalancer yet"},
		"nobody announces it":     {func(h *Snapshot) { h.set(v1alpha1.ConditionAnnounced, "NotAnnounced", "no router") }, Untried, "it is not known whether the LoadBalancer is announced"},
	} {
		t.Run(name, func(t *testing.T) {
			check := checkResetting(t, c.change)
			require.Equal(t, c.result, check.Result, check.Message)
			require.Contains(t, check.Message, "the connection was accepted, and then reset")
			require.Contains(t, check.Message, c.why)
		})
	}
}

// electsAnother makes the gateways elect a second gateway, which the pool chooses and which tries its ports. The first gateway does not try its ports.
func electsAnother(h *Snapshot) {
	chooseOtherSite(h)
	h.addGateway().Labels = map[string]string{"site": "two"}
	h.Gateways[0].Status.Tries = nil
	for i := range h.Gateways {
		h.Gateways[i].Status.Elects, h.Gateways[i].Status.Candidates = true, []string{"g1", "g2"}
	}
}

func TestExplainIgnoresTriesOfSilentAndOfUnchosenGateways(t *testing.T) {
	tried := func(change func(*Snapshot)) (string, bool) {
		h := healthy()
		h.Gateways[0].Status.Tries = &v1alpha1.GatewayTries{Answered: 7}
		h.LoadBalancers[0].Status.Addresses[0].Address = "127.0.0.1"
		change(h)
		return h.answered(&h.LoadBalancers[0])
	}
	const seven = "gateway g1 has tried its ports: 7 answered, 0 failing, 0 not known yet"
	message, holds := tried(func(*Snapshot) {})
	require.True(t, holds)
	require.Equal(t, "no failure is known; "+seven, message)

	message, holds = tried(func(h *Snapshot) { h.addGateway(); delete(h.Leases, "g2") })
	require.True(t, holds)
	require.Contains(t, message, seven+"; gateway g2 has no Lease")
	require.NotContains(t, message, "gateway g2 has tried")

	message, holds = tried(func(h *Snapshot) { h.Leases = nil })
	require.False(t, holds, message)
	require.Contains(t, message, "unknown: gateway g1 has no Lease")

	message, holds = tried(func(h *Snapshot) {
		chooseOtherSite(h)
		h.addGateway().Labels = map[string]string{"site": "two"}
		h.crash("g2")
	})
	require.False(t, holds, "the gateway that has tried its ports serves other pools")
	require.Equal(t, "unknown: gateway g2 is gone", message)
}
