package gateway

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/announce/announcetest"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

const unanswered = "connections get no answer; its nodes answer the gateway itself, so the reason is the gateway's dataplane, or a firewall of the gateway's host"

// formerlyFailing returns the Gateway object of a former process that found two ports failing.
func formerlyFailing() *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered + "; 1 of its other ports fail, too"},
		{LoadBalancer: "tenant-a/gone", Record: "frontend TCP 203.0.113.7:1", Message: unanswered}}}}}
}

// restarted returns a new process of a gateway that tries ports.
func restarted(t *testing.T, o Options) *testGateway {
	o.Announcer, o.TryEvery, o.TryFrom = announcetest.Recorder{}, time.Minute, []netip.Addr{netip.MustParseAddr("192.0.0.6")}
	h := newTestGatewayWith(t, o)
	h.request("a", 2, 4, netip.MustParseAddr("203.0.113.1"))
	gatewayChanged(formerlyFailing(), false)(h.Gateway)
	require.Empty(t, h.triableNow().Frontends, "the hub has not been read")
	return h
}

// failures returns the failing ports in the status after the gateway has read the hub.
func (h *testGateway) failures() []v1alpha1.GatewayFailure {
	h.driver.Sync(h.t.Context(), h.hub.Flush().Model, h.seenVersion)
	return h.tries.Status(h.failing()).Failures
}

func TestAPortIsTriedWhileThisGatewayAnswersForItAndItsDataplaneHoldsIt(t *testing.T) {
	h := restarted(t, Options{})
	require.Len(t, h.failures(), 1, "it failed before")
	require.True(t, h.triableNow().Frontends[0].Paused, "the dataplane does not hold it yet")
	h.Add(drivertest.Module)
	h.workOnce()
	require.False(t, h.triableNow().Frontends[0].Paused)
	ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
	require.NoError(t, err)
	h.selection.SetAddressPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "1"}})
	require.Empty(t, h.triableNow().Frontends, "another gateway answers for it")
	require.Empty(t, h.failures())
}

func TestADrainingGatewayReportsNoFailuresOfPortsThatOthersHave(t *testing.T) {
	h := restarted(t, Options{})
	require.NotEmpty(t, h.failures())
	h.drain.Request(true)
	h.drain.Update(time.Now(), h.ownership.IsReplaced)
	require.Empty(t, h.failures())
}

func TestAShutdownKeepsAFailureIfNoPeerTakesOver(t *testing.T) {
	h := restarted(t, Options{})
	h.drain.Shutdown.Begin()
	h.drain.Update(time.Now(), h.ownership.IsReplaced)
	require.True(t, h.drain.Draining())
	require.Len(t, h.failures(), 1, "the next process reads it")
}

// failingAt returns the object of another gateway, at which a port of the LoadBalancer fails.
func failingAt(name string) *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Failing: 1, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}}}
}

// Without an interface for tries no frontends are listed, and addresses still move.
func TestAPossibleFailureMovesHereAlthoughNothingCanBeTried(t *testing.T) {
	h := restarted(t, Options{})
	ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
	require.NoError(t, err)
	choose := func(rack string) {
		h.selection.SetAddressPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"rack": rack}})
	}
	other := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"rack": "1"}},
		Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Unlisted: []string{"tenant-a"}}}}
	gatewayChanged(&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g", Labels: map[string]string{"rack": "2"}}}, false)(h.Gateway)
	choose("1")
	gatewayChanged(other, false)(h.Gateway)
	require.Empty(t, h.failures())
	choose("2")
	require.Len(t, h.failures(), 1)
	require.Contains(t, h.failures()[0].Message, "1 of its other ports may fail, too")
}

// Other gateways do not need most changes of a Gateway's status.
func TestAGatewayReadsTheFailuresOfOthers(t *testing.T) {
	well := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
	fails, answers := failingAt("other"), failingAt("other")
	answers.Status.Tries.Answered++
	require.True(t, samePublicState(well, fails))
	require.False(t, sameTries(well, fails))
	require.False(t, sameTries(fails, well))
	more := failingAt("other")
	more.Status.Tries.Unlisted = []string{"tenant-a"}
	require.False(t, sameTries(fails, more), "it has failures that it does not name")
	require.True(t, sameTries(fails, answers))
}
