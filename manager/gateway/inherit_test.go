package gateway

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/watchdog"
)

// failingAt is the object of another gateway, at which a port of the LoadBalancer fails.
func failingAt(name string) *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered + "; 1 of its other ports fail, too"}}}}}
}

// besideFailing is a gateway that elects, and tries ports. Its fellow has the address of a LoadBalancer, of which a port fails there.
func besideFailing(t *testing.T, fellow string) *onHost {
	h := newOnHost(t)
	h.watchdog, h.answering.elects = h.newWatchdog(), true
	h.asks("a", 2, 4, netip.MustParseAddr("203.0.113.1"))
	gatewayChanged(&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}}, false)(h.Gateway)
	h.answering.view = election.View{Candidates: []string{fellow}}
	gatewayChanged(failingAt(fellow), false)(h.Gateway)
	require.Empty(t, h.says(), "the other one says so itself")
	require.Empty(t, h.triableNow())
	return h
}

// heals has the other gateway name no failure any more.
func (h *onHost) heals(name string) {
	triesChanged(&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}}, false)(h.Gateway)
}

// winner has the gateways elect that one.
func (h *onHost) winner(name string) { h.answering.view = election.View{Candidates: []string{name}} }

func TestAPortThatFailedAtAnotherGatewayFailsUntilThisOneHasTriedIt(t *testing.T) {
	const message = "at gateway other, which answered for the address before: " + unanswered
	for name, moves := range map[string]func(*onHost){
		"the other one has crashed": func(h *onHost) { h.winner("g") },
		"the other one has let go of it, and says so later": func(h *onHost) {
			h.winner("g")
			require.Len(h.t, h.says(), 1)
			h.heals("other")
		},
		"the other one has let go of it, and said so before": func(h *onHost) {
			h.heals("other")
			h.winner("g")
		},
		"there was nobody meanwhile": func(h *onHost) {
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
			list := h.triableNow()
			require.Equal(t, message, list[0].Former)
			require.True(t, list[0].Moved)
			require.Empty(t, list[1].Former)
			require.False(t, list[1].Moved)

			h.tried = watchdog.Report{Failures: []watchdog.Failure{{AddrPort: list[0].AddrPort, Message: message}}}
			h.former.told(h.tried)
			require.Len(t, h.says(), 1, "the watchdog knows of it now")
			require.Empty(t, h.triableNow()[0].Former)
			h.tried = watchdog.Report{Answered: 2}
			h.former.told(h.tried)
			require.Empty(t, h.says())
			require.Empty(t, h.says(), "it is taken over once")
		})
	}
}

func TestAFailureDoesNotMoveThatIsOverOrWasNeverWhereTheAddressWas(t *testing.T) {
	for name, before := range map[string]func(*onHost){
		"it ended some time ago": func(h *onHost) {
			h.heals("other")
			for _, f := range h.others {
				f.until = time.Now().Add(-time.Second)
			}
		},
		"a third gateway had the address meanwhile": func(h *onHost) {
			h.winner("third")
			require.Empty(h.t, h.says())
		},
		"another LoadBalancer has the address": func(h *onHost) {
			h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
			h.asks("b", 1, 5, netip.MustParseAddr("203.0.113.1"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := besideFailing(t, "other")
			before(h)
			h.winner("g")
			h.hub.Flush()
			require.Empty(t, h.failing())
		})
	}
	t.Run("its gateway was gone before this process began", func(t *testing.T) {
		h := besideFailing(t, "third")
		clear(h.others)
		gatewayChanged(failingAt("gone"), false)(h.Gateway)
		require.Empty(t, h.says())
		h.winner("g")
		require.Empty(t, h.says())
	})
}

// Most changes of a Gateway's status are nothing to other gateways, and are not looked at.
func TestAGatewayHearsWhatFailsAtOthers(t *testing.T) {
	well := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
	fails, answers := failingAt("other"), failingAt("other")
	answers.Status.Tries.Answered++
	require.True(t, sameToOthers(well, fails))
	require.False(t, sameTries(well, fails))
	require.False(t, sameTries(fails, well))
	require.True(t, sameTries(fails, answers))
}
