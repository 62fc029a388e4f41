package report

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/watchdog"
)

// failingAtPeer returns the tries of another gateway, at which a port of the LoadBalancer fails.
func failingAtPeer() *v1alpha1.GatewayTries {
	return &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}
}

// withFailingPeer returns the test of a gateway with a peer that has the address of the LoadBalancer, and at which a port of it fails.
func withFailingPeer(t *testing.T, other string) *triesTest {
	h := newTriesTest(t)
	h.ReadStatus("g", nil, time.Now())
	h.setAnswerer(other)
	h.ReadStatus(other, failingAtPeer(), time.Now())
	require.Empty(t, h.failures(), "the peer reports it itself")
	require.Empty(t, h.list())
	return h
}

// heal makes the peer name no failure any more.
func (h *triesTest) heal(name string) { h.ReadStatus(name, nil, time.Now()) }

func TestAPortThatFailedAtAnotherGatewayFailsUntilThisOneHasTriedIt(t *testing.T) {
	const message = "at gateway other, which answered for the address before: " + unanswered
	for name, moves := range map[string]func(*triesTest){
		"the peer has crashed": func(h *triesTest) { h.setAnswerer("g") },
		"the peer has withdrawn the address, and reports that later": func(h *triesTest) {
			h.setAnswerer("g")
			require.Len(h.t, h.failures(), 1)
			h.heal("other")
		},
		"the peer has withdrawn the address, and reported that before": func(h *triesTest) {
			h.heal("other")
			h.setAnswerer("g")
		},
		"meanwhile no gateway answered": func(h *triesTest) {
			h.setAnswerer("")
			require.Empty(h.t, h.failures())
			h.setAnswerer("g")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := withFailingPeer(t, "other")
			moves(h)
			says := h.failures()
			require.Len(t, says, 1, "no try has shown that it works")
			require.Equal(t, "frontend TCP 203.0.113.1:1", says[0].Record)
			require.Equal(t, message, says[0].Message)
			list := h.list()
			require.Equal(t, message, list[0].Former)
			require.True(t, list[0].Moved)
			require.Empty(t, list[1].Former)
			require.False(t, list[1].Moved)

			h.reportTried(watchdog.Failure{AddrPort: list[0].AddrPort, Message: message})
			require.Len(t, h.failures(), 1, "the watchdog has taken it over")
			require.Empty(t, h.list()[0].Former)
			h.reportTried()
			require.Empty(t, h.failures())
			require.Empty(t, h.failures(), "it is taken over once")
		})
	}
}

func TestAFailureThatIsOverOrOfAThirdGatewayDoesNotMove(t *testing.T) {
	for name, before := range map[string]func(*triesTest){
		"the peer stopped naming it some time ago": func(h *triesTest) {
			h.heal("other")
			for _, f := range h.ofPeers {
				f.expires = time.Now().Add(-time.Second)
			}
		},
		"a third gateway had the address meanwhile": func(h *triesTest) {
			h.setAnswerer("third")
			require.Empty(h.t, h.failures())
		},
		"another LoadBalancer has the address": func(h *triesTest) {
			h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
			h.request("b", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := withFailingPeer(t, "other")
			before(h)
			h.setAnswerer("g")
			h.hub.Flush()
			require.Empty(t, h.Failing(time.Now()))
		})
	}
	t.Run("its gateway was gone before this process began", func(t *testing.T) {
		h := withFailingPeer(t, "third")
		clear(h.ofPeers)
		h.ReadStatus("gone", failingAtPeer(), time.Now())
		require.Empty(t, h.failures())
		h.setAnswerer("g")
		require.Empty(t, h.failures())
	})
}
