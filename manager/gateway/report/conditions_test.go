package report

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/manager/heartbeat"
)

func TestRefusedHeartbeatsAreReportedWithTheReason(t *testing.T) {
	c := refusedCondition([]heartbeat.Refusal{{Gateway: "g2", Reason: "its clock is wrong"}, {Gateway: "g3", Reason: "it began anew"}})
	require.Equal(t, "HeartbeatsRefused", c.Type)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Contains(t, c.Message, "gateway g2: its clock is wrong\ngateway g3: it began anew")
}

// fakeLease is a Lease of a gateway.
type fakeLease struct {
	reaches    bool
	writeError string
}

func (s *fakeLease) ReachesAPI() bool         { return s.reaches }
func (s *fakeLease) SetWriteError(why string) { s.writeError = why }

func TestAGatewayPublishesOnItsLeaseThatItsObjectCannotBeWritten(t *testing.T) {
	lease, now := &fakeLease{reaches: true}, time.Now()
	f := writeFailure{lease: lease}
	refused := errors.New("status.failures: too many")
	f.setResult(refused, now)
	require.Empty(t, lease.writeError, "the API server may refuse it only for a moment")
	f.setResult(refused, now.Add(writeFailureAfter))
	require.Equal(t, "status.failures: too many", lease.writeError)
	f.setResult(nil, now.Add(2*writeFailureAfter))
	require.Empty(t, lease.writeError)

	lease.reaches = false
	f.setResult(refused, now)
	f.setResult(refused, now.Add(time.Hour))
	require.Empty(t, lease.writeError, "the API is unreachable, which the Lease shows")
	lease.reaches = true
	f.setResult(refused, now.Add(time.Hour))
	require.Empty(t, lease.writeError, "the API is reachable again just now")
	without := writeFailure{}
	without.setResult(refused, now)
}

func TestEachGroupWithSomethingMissingHasOneCondition(t *testing.T) {
	missing := func(group dataplane.Group, subject, costs string) dataplane.Check {
		return dataplane.Check{Group: group, Subject: subject, State: dataplane.CheckMissing, Found: "gone", Costs: costs}
	}
	conditions := hostConditions(dataplane.Lacking([]dataplane.Check{
		missing(dataplane.GroupSysctls, "a", "something"), missing(dataplane.GroupModules, "b", "something"), missing(dataplane.GroupModules, "c", ""),
		missing("Moons", "d", ""), {Group: dataplane.GroupClock, State: dataplane.CheckUnknown}, {Group: dataplane.GroupPorts, State: dataplane.CheckOK}}))
	var said []string
	for _, c := range conditions {
		said = append(said, c.Type+" "+c.Reason+" "+c.Message)
	}
	require.Equal(t, []string{
		"HostKernel Missing d: gone", // a group that this manager does not know
		"HostModules Missing c: gone\nb: gone; does not work: something",
		"HostSysctls Limited a: gone; does not work: something",
	}, said)
}
