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

const unanswered = "connections get no answer; its nodes answer the gateway itself, so that its dataplane, or a firewall of its host, is the reason"

// leftFailing is the gateway's object as a process left it that found two ports of a LoadBalancer failing.
func leftFailing() *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Failing: 2, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered + "; 1 of its other ports fail, too"},
		{LoadBalancer: "tenant-a/gone", Record: "frontend TCP 203.0.113.7:1", Message: unanswered}}}}}
}

// again is a gateway whose process is new, and which tries ports.
func again(t *testing.T, o Options) *onHost {
	o.Announcer, o.TryEvery, o.TryFrom = announcetest.Board{}, time.Minute, []netip.Addr{netip.MustParseAddr("192.0.0.6")}
	h := newOnHostWith(t, o)
	h.asks("a", 2, 4, netip.MustParseAddr("203.0.113.1"))
	gatewayChanged(leftFailing(), false)(h.Gateway)
	require.Empty(t, h.triableNow().Frontends, "the hub has not been read")
	return h
}

// says are the failing ports that the object names once the gateway has read the hub.
func (h *onHost) says() []v1alpha1.GatewayFailure {
	h.driver.Sync(h.t.Context(), h.hub.Flush().Model, h.seen)
	return h.tries.Status(h.failing()).Failures
}

func TestAPortIsTriedHereWhileThisGatewayAnswersForItAndItsDataplaneHoldsIt(t *testing.T) {
	h := again(t, Options{})
	require.Len(t, h.says(), 1, "it failed before")
	require.True(t, h.triableNow().Frontends[0].Paused, "the dataplane does not hold it yet")
	h.Add(drivertest.Module)
	h.works()
	require.False(t, h.triableNow().Frontends[0].Paused)
	ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
	require.NoError(t, err)
	h.selection.SetPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "1"}})
	require.Empty(t, h.triableNow().Frontends, "it is another one's")
	require.Empty(t, h.says())
}

func TestAGatewayThatDrainsSaysNothingOfPortsThatOthersHave(t *testing.T) {
	h := again(t, Options{})
	require.NotEmpty(t, h.says())
	h.drain.Request(true)
	h.drain.Update(time.Now(), h.ownership.IsReplaced)
	require.Empty(t, h.says())
}

func TestAProcessThatEndsKeepsAFailureWhereNobodyTakesOver(t *testing.T) {
	h := again(t, Options{})
	h.drain.Shutdown.Begin()
	h.drain.Update(time.Now(), h.ownership.IsReplaced)
	require.True(t, h.drain.Draining())
	require.Len(t, h.says(), 1, "the next one reads it")
}

// failingAt is the object of another gateway, at which a port of the LoadBalancer fails.
func failingAt(name string) *v1alpha1.Gateway {
	return &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Failing: 1, Failures: []v1alpha1.GatewayFailure{
		{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:1", Message: unanswered}}}}}
}

// Where no interface for tries can be made, no frontends are listed, and addresses move all the same.
func TestWhatMayFailAtAnotherGatewayMovesHereThoughNothingCanBeTried(t *testing.T) {
	h := again(t, Options{})
	ranges, err := ipam.ParseRanges([]string{"203.0.113.0/24"}, false)
	require.NoError(t, err)
	choose := func(rack string) {
		h.selection.SetPool("pool", ranges, &metav1.LabelSelector{MatchLabels: map[string]string{"rack": rack}})
	}
	other := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"rack": "1"}},
		Status: v1alpha1.GatewayStatus{Tries: &v1alpha1.GatewayTries{Unlisted: []string{"tenant-a"}}}}
	gatewayChanged(&v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "g", Labels: map[string]string{"rack": "2"}}}, false)(h.Gateway)
	choose("1")
	gatewayChanged(other, false)(h.Gateway)
	require.Empty(t, h.says())
	choose("2")
	require.Len(t, h.says(), 1)
	require.Contains(t, h.says()[0].Message, "1 of its other ports may fail, too")
}

// Most changes of a Gateway's status are nothing to other gateways, and are not looked at.
func TestAGatewayHearsWhatFailsAtOthers(t *testing.T) {
	well := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
	fails, answers := failingAt("other"), failingAt("other")
	answers.Status.Tries.Answered++
	require.True(t, sameToOthers(well, fails))
	require.False(t, sameTries(well, fails))
	require.False(t, sameTries(fails, well))
	more := failingAt("other")
	more.Status.Tries.Unlisted = []string{"tenant-a"}
	require.False(t, sameTries(fails, more), "there are failures that it does not name")
	require.True(t, sameTries(fails, answers))
}
