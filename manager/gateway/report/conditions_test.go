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

func TestGatewaysThatAreNotBelievedAreNamedWithTheReason(t *testing.T) {
	c := refusedCondition([]heartbeat.Refusal{{Gateway: "g2", Reason: "its clock is wrong"}, {Gateway: "g3", Reason: "it began anew"}})
	require.Equal(t, "HeartbeatsRefused", c.Type)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Contains(t, c.Message, "gateway g2: its clock is wrong\ngateway g3: it began anew")
}

// slate is a Lease, of a gateway that reaches the API or not.
type slate struct {
	reaches bool
	says    string
}

func (s *slate) Reaches() bool            { return s.reaches }
func (s *slate) SetWriteError(why string) { s.says = why }

func TestAGatewayWhoseObjectCannotBeWrittenSaysSoOnItsLease(t *testing.T) {
	lease, now := &slate{reaches: true}, time.Now()
	f := writeFailure{lease: lease}
	refused := errors.New("status.failures: too many")
	f.note(refused, now)
	require.Empty(t, lease.says, "it may be a moment")
	f.note(refused, now.Add(unwrittenAfter))
	require.Equal(t, "status.failures: too many", lease.says)
	f.note(nil, now.Add(2*unwrittenAfter))
	require.Empty(t, lease.says)

	lease.reaches = false
	f.note(refused, now)
	f.note(refused, now.Add(time.Hour))
	require.Empty(t, lease.says, "the API is away, which the Lease tells")
	lease.reaches = true
	f.note(refused, now.Add(time.Hour))
	require.Empty(t, lease.says, "it is just back")
	without := writeFailure{}
	without.note(refused, now)
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
		"HostKernel Missing d: gone", // of a group that this manager does not know
		"HostModules Missing c: gone\nb: gone; does not work: something",
		"HostSysctls Limited a: gone; does not work: something",
	}, said)
}
