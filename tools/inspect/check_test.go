package inspect

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/connect/connecttest"
)

func TestAConnectionThatIsResetIsNoAnswerWhereNoGatewayTriesIt(t *testing.T) {
	port := int32(connecttest.Serve(t, netip.MustParseAddrPort("127.0.0.1:0"), connecttest.Reset).Port())
	for says, c := range map[string]struct {
		change func(*v1alpha1.LoadBalancerSpec)
		result CheckResult
	}{
		"gateways try it":      {func(*v1alpha1.LoadBalancerSpec) {}, Answers},
		"answers go past it":   {func(s *v1alpha1.LoadBalancerSpec) { s.Forwarding = "direct" }, Fails},
		"it has source ranges": {func(s *v1alpha1.LoadBalancerSpec) { s.LoadBalancerSourceRanges = []string{"127.0.0.0/8"} }, Expected},
	} {
		h := healthy()
		h.Gateways[0].Status.Tries = &v1alpha1.GatewayTries{Answered: 1}
		lb := &h.LoadBalancers[0]
		lb.Status.Addresses[0].Address = "127.0.0.1"
		lb.Spec.Ports = []v1alpha1.LoadBalancerPort{{Port: port, Protocol: corev1.ProtocolTCP}}
		c.change(&lb.Spec)
		checks := h.Check(t.Context(), []*v1alpha1.LoadBalancer{lb})
		require.Len(t, checks, 1)
		require.Equal(t, c.result, checks[0].Result, "%s: %s", says, checks[0].Message)
	}
}
