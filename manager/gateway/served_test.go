package gateway

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
	"kubelb.k8c.io/manager/gateway/report"
	"kubelb.k8c.io/manager/watchdog"
)

// The beginnings of messages.
const (
	segmentSilent   = "clients do not reach this gateway: "
	dataplaneSilent = "the dataplane does not answer: "
)

// leftServingNothing is the gateway's object as a process left it that served nothing.
func leftServingNothing(reason, message string) *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.Now()}}}}
}

// servesNothingBy is the message of the condition Served, empty if there is none.
func (g *Gateway) servesNothingBy(t *testing.T, reason string) string {
	t.Helper()
	c, is := g.servedCondition(time.Now())
	if !is {
		return ""
	}
	require.Equal(t, reason, c.Reason)
	return c.Message
}

func TestASegmentThatWasSilentIsSoUntilAHostAnswersANewProcess(t *testing.T) {
	const silent = segmentSilent + "no host that answered before answers at interface eth1 now (198.51.100.1)"
	h := again(t, Options{AnnounceOptions: AnnounceOptions{Segment: []string{"eth0", "eth1"}}})
	gatewayChanged(leftServingNothing(v1alpha1.ReasonSegmentSilent, silent), false)(h.Gateway)
	require.Empty(t, h.servesNothingBy(t, v1alpha1.ReasonSegmentSilent), "the object was read before, when it said nothing of the kind")

	h.serving = report.NewServed(h.options.Segment, true)
	gatewayChanged(leftServingNothing(v1alpha1.ReasonSegmentSilent, silent), false)(h.Gateway)
	says := func() string { return h.servesNothingBy(t, v1alpha1.ReasonSegmentSilent) }
	require.Equal(t, silent, says(), "it answers for no address yet")
	h.served = true
	require.Empty(t, says(), "other gateways answer for all addresses")
	h.ownership.Add(netip.MustParseAddr("203.0.113.1"))
	h.elect(t.Context())
	require.Equal(t, silent, says())
	h.serving.SetSegment(watchdog.Segment{Known: []string{"eth0"}})
	require.Equal(t, silent, says(), "a host has answered elsewhere")
	h.ownership.Remove(netip.MustParseAddr("203.0.113.1"))
	h.drain.Shutdown.Begin()
	require.Equal(t, silent, says(), "it ends, and its next process reads it")
	h.serving.SetSegment(watchdog.Segment{Known: []string{"eth0", "eth1"}})
	require.Empty(t, says())

	h.serving = report.NewServed(h.options.Segment, false)
	gatewayChanged(leftServingNothing(v1alpha1.ReasonSegmentSilent, silent), false)(h.Gateway)
	require.Empty(t, says(), "nobody looks any more")
}

func TestADataplaneThatWasSilentIsSoUntilItAnswersANewProcess(t *testing.T) {
	const silent = dataplaneSilent + "context deadline exceeded"
	h := newOnHost(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	left := leftServingNothing(v1alpha1.ReasonDataplaneSilent, silent)
	h.left(left.Status)
	gatewayChanged(left, false)(h.Gateway)
	h.noteAnswer(errors.New("deadline exceeded"), time.Now())
	end := h.runs()
	says := func() *metav1.Condition {
		return meta.FindStatusCondition(h.written().Conditions, v1alpha1.ConditionServed)
	}
	require.Eventually(t, func() bool { return meta.IsStatusConditionTrue(h.written().Conditions, v1alpha1.ConditionReady) }, 20*time.Second, 10*time.Millisecond)
	require.NotNil(t, says(), "it has taken the model, and nobody has read its counters")
	require.Equal(t, silent, says().Message)
	h.send(t.Context(), func(g *Gateway) { g.noteAnswer(nil, time.Now()) })
	require.Eventually(t, func() bool { return says() == nil }, 20*time.Second, 10*time.Millisecond)
	end()
}
