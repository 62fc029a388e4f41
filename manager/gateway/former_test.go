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
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
	"kubelb.k8c.io/manager/watchdog"
)

const unanswered = "connections get no answer; its nodes answer the gateway itself, so that its dataplane, or a firewall of its host, is the reason"

// leftFailing is the gateway's object as a process left it that found two ports of a LoadBalancer failing.
func leftFailing() *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered + "; 1 of its other ports fail, too"},
		{LoadBalancer: "tenant-a/gone", Record: "frontend TCP 203.0.113.7:1", Message: unanswered}}}}}
}

// again is a gateway whose process is new, and which tries ports.
func again(t *testing.T) *onHost {
	h := newOnHost(t)
	h.watchdog = h.newWatchdog()
	h.asks("a", 2, 4, netip.MustParseAddr("203.0.113.1"))
	gatewayChanged(leftFailing(), false)(h.Gateway)
	require.Empty(t, h.triableNow(), "the hub has not been read")
	return h
}

// says are the failing ports that the object names once the gateway has read the hub.
func (h *onHost) says() []v1alpha1.GatewayFailure {
	h.driver.Sync(h.t.Context(), h.hub.Flush().Model, h.seen)
	return h.tries(h.failing()).Failures
}

func TestAPortThatFailedFailsUntilANewProcessHasTriedIt(t *testing.T) {
	h := again(t)
	vip := netip.MustParseAddr("203.0.113.1")
	at := netip.AddrPortFrom(vip, 1)
	named := []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}
	require.Equal(t, named, h.says(), "the dataplane holds nothing yet, and nobody is elected")
	list := h.triableNow()
	require.Len(t, list, 2)
	require.True(t, list[0].Paused, "clients do not reach it here yet")
	require.Equal(t, unanswered, list[0].Former)
	require.Empty(t, list[1].Former)

	h.Has(drivertest.Module)
	h.works()
	require.True(t, h.driver.Serves(keyOf(at)))
	h.answering.answers[vip] = true
	require.Equal(t, named, h.says())
	require.False(t, h.triableNow()[0].Paused)
	h.tried = watchdog.Report{Problem: "kubelb-watch cannot be made"}
	h.former.told(h.tried)
	require.Equal(t, named, h.says(), "nothing was tried")

	h.tried = watchdog.Report{Failures: []watchdog.Failure{{AddrPort: at, Message: "connections are refused"}}}
	h.former.told(h.tried)
	require.Equal(t, "connections are refused", h.says()[0].Message, "the watchdog knows of it now")
	h.tried = watchdog.Report{Answered: 2}
	h.former.told(h.tried)
	require.Empty(t, h.says())
	gatewayChanged(leftFailing(), false)(h.Gateway)
	require.Empty(t, h.says(), "later the object is of this process")
}

func TestWhatFailedBeforeIsForgottenWhereItIsNoLongerThisGatewaysToTry(t *testing.T) {
	vip := netip.MustParseAddr("203.0.113.1")
	for name, change := range map[string]func(*onHost){
		"another LoadBalancer has the address": func(h *onHost) {
			h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"})
			h.asks("b", 1, 5, vip)
		},
		"it is deleted": func(h *onHost) { h.hub.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "lb"}) },
		"its port is":   func(h *onHost) { h.asks("a", 0, 5, vip) },
		"another gateway answers for it": func(h *onHost) {
			h.answering.elects, h.answering.view = true, election.View{Candidates: []string{"other"}}
		},
		"this gateway drains, and others have it": func(h *onHost) {
			h.drain.Request(true)
			h.drain.Update(time.Now(), h.isReplaced)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := again(t)
			require.NotEmpty(t, h.says())
			change(h)
			require.Empty(t, h.says())
		})
	}
}

func TestAPortThatAnotherGatewayHadForAMomentIsNotTakenForWell(t *testing.T) {
	h := again(t)
	h.answering.elects, h.answering.view = true, election.View{Candidates: []string{"other"}}
	require.Empty(t, h.says(), "the other one tries it")
	require.Empty(t, h.triableNow())
	h.answering.view.Candidates = []string{"g"}
	require.Len(t, h.says(), 1)
	require.Equal(t, unanswered, h.triableNow()[0].Former)

	h.answering.view.Candidates = []string{"other"}
	h.former.at = time.Now().Add(-2 * formerFor)
	h.triableNow()
	h.answering.view.Candidates = []string{"g"}
	require.Empty(t, h.says(), "that is long ago")
}

func TestAProcessThatEndsKeepsAFailureWhereNobodyTakesOver(t *testing.T) {
	h := again(t)
	h.drain.Shutdown.Begin()
	h.drain.Update(time.Now(), h.isReplaced)
	require.True(t, h.drain.Draining())
	require.Len(t, h.says(), 1, "the next one reads it")
}
