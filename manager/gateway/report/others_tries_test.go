package report

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/watchdog"
)

// failingElsewhere are the tries of another gateway, at which a port of the LoadBalancer fails.
func failingElsewhere() *v1alpha1.GatewayTries {
	return &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}
}

// besideFailing are those of a gateway beside another one, which has the address of a LoadBalancer, of which a port fails there.
func besideFailing(t *testing.T, other string) *tester {
	h := newTester(t)
	h.Learn("g", nil, time.Now())
	h.winner(other)
	h.Learn(other, failingElsewhere(), time.Now())
	require.Empty(t, h.says(), "the other one says so itself")
	require.Empty(t, h.list())
	return h
}

// heals has the other gateway name no failure any more.
func (h *tester) heals(name string) { h.Learn(name, nil, time.Now()) }

func TestAPortThatFailedAtAnotherGatewayFailsUntilThisOneHasTriedIt(t *testing.T) {
	const message = "at gateway other, which answered for the address before: " + unanswered
	for name, moves := range map[string]func(*tester){
		"the other one has crashed": func(h *tester) { h.winner("g") },
		"the other one has let go of it, and says so later": func(h *tester) {
			h.winner("g")
			require.Len(h.t, h.says(), 1)
			h.heals("other")
		},
		"the other one has let go of it, and said so before": func(h *tester) {
			h.heals("other")
			h.winner("g")
		},
		"there was nobody meanwhile": func(h *tester) {
			h.winner("")
			require.Empty(h.t, h.says())
			h.winner("g")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := besideFailing(t, "other")
			moves(h)
			says := h.says()
			require.Len(t, says, 1, "nobody has seen that it is well")
			require.Equal(t, "frontend TCP 203.0.113.1:1", says[0].Record)
			require.Equal(t, message, says[0].Message)
			list := h.list()
			require.Equal(t, message, list[0].Former)
			require.True(t, list[0].Moved)
			require.Empty(t, list[1].Former)
			require.False(t, list[1].Moved)

			h.tried(watchdog.Failure{AddrPort: list[0].AddrPort, Message: message})
			require.Len(t, h.says(), 1, "the watchdog knows of it now")
			require.Empty(t, h.list()[0].Former)
			h.tried()
			require.Empty(t, h.says())
			require.Empty(t, h.says(), "it is taken over once")
		})
	}
}

func TestAFailureDoesNotMoveThatIsOverOrWasNeverWhereTheAddressWas(t *testing.T) {
	for name, before := range map[string]func(*tester){
		"it ended some time ago": func(h *tester) {
			h.heals("other")
			for _, f := range h.others {
				f.until = time.Now().Add(-time.Second)
			}
		},
		"a third gateway had the address meanwhile": func(h *tester) {
			h.winner("third")
			require.Empty(h.t, h.says())
		},
		"another LoadBalancer has the address": func(h *tester) {
			h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
			h.asks("b", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := besideFailing(t, "other")
			before(h)
			h.winner("g")
			h.hub.Flush()
			require.Empty(t, h.Failing(time.Now()))
		})
	}
	t.Run("its gateway was gone before this process began", func(t *testing.T) {
		h := besideFailing(t, "third")
		clear(h.others)
		h.Learn("gone", failingElsewhere(), time.Now())
		require.Empty(t, h.says())
		h.winner("g")
		require.Empty(t, h.says())
	})
}
