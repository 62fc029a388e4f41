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

// The prefixes of messages.
const (
	segmentSilent   = "clients do not reach this gateway: "
	dataplaneSilent = "the dataplane does not answer: "
)

// formerlyUnserved returns the Gateway object of a former process that served nothing.
func formerlyUnserved(reason, message string) *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.Now()}}}}
}

// servedMessage returns the message of the condition Served, empty if there is none.
func (g *Gateway) servedMessage(t *testing.T, reason string) string {
	t.Helper()
	c, is := g.servedCondition(time.Now())
	if !is {
		return ""
	}
	require.Equal(t, reason, c.Reason)
	return c.Message
}

func TestASilentSegmentStaysSilentUntilAHostAnswersANewProcess(t *testing.T) {
	const silent = segmentSilent + "no host that answered before answers at interface eth1 now (198.51.100.1)"
	h := restarted(t, Options{AnnounceOptions: AnnounceOptions{CheckedInterfaces: []string{"eth0", "eth1"}}})
	gatewayChanged(formerlyUnserved(v1alpha1.ReasonSegmentSilent, silent), false)(h.Gateway)
	require.Empty(t, h.servedMessage(t, v1alpha1.ReasonSegmentSilent), "the object was read before, without the condition")

	h.serving = report.NewServed(h.options.CheckedInterfaces, true)
	gatewayChanged(formerlyUnserved(v1alpha1.ReasonSegmentSilent, silent), false)(h.Gateway)
	message := func() string { return h.servedMessage(t, v1alpha1.ReasonSegmentSilent) }
	require.Equal(t, silent, message(), "the gateway answers for no address yet")
	h.served = true
	require.Empty(t, message(), "other gateways answer for all addresses")
	h.ownership.Add(netip.MustParseAddr("203.0.113.1"))
	h.elect(t.Context())
	require.Equal(t, silent, message())
	h.serving.SetSegment(watchdog.Segment{Known: []string{"eth0"}})
	require.Equal(t, silent, message(), "a host has answered at another interface")
	h.ownership.Remove(netip.MustParseAddr("203.0.113.1"))
	h.drain.Shutdown.Begin()
	require.Equal(t, silent, message(), "the gateway shuts down, and its next process reads the condition")
	h.serving.SetSegment(watchdog.Segment{Known: []string{"eth0", "eth1"}})
	require.Empty(t, message())

	h.serving = report.NewServed(h.options.CheckedInterfaces, false)
	gatewayChanged(formerlyUnserved(v1alpha1.ReasonSegmentSilent, silent), false)(h.Gateway)
	require.Empty(t, message(), "tries are turned off")
}

func TestASilentDataplaneStaysSilentUntilItAnswersANewProcess(t *testing.T) {
	const silent = dataplaneSilent + "context deadline exceeded"
	h := newTestGateway(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	former := formerlyUnserved(v1alpha1.ReasonDataplaneSilent, silent)
	h.createGateway(former.Status)
	gatewayChanged(former, false)(h.Gateway)
	h.setCountersResult(errors.New("deadline exceeded"), time.Now())
	end := h.run()
	served := func() *metav1.Condition {
		return meta.FindStatusCondition(h.status().Conditions, v1alpha1.ConditionServed)
	}
	require.Eventually(t, func() bool { return meta.IsStatusConditionTrue(h.status().Conditions, v1alpha1.ConditionReady) }, 20*time.Second, 10*time.Millisecond)
	require.NotNil(t, served(), "the dataplane has taken the model, and its counters were not read yet")
	require.Equal(t, silent, served().Message)
	h.send(t.Context(), func(g *Gateway) { g.setCountersResult(nil, time.Now()) })
	require.Eventually(t, func() bool { return served() == nil }, 20*time.Second, 10*time.Millisecond)
	end()
}
