package gateway

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

func (s *slate) Reaches() bool           { return s.reaches }
func (s *slate) SayUnwritten(why string) { s.says = why }

func TestAGatewayWhoseObjectCannotBeWrittenSaysSoOnItsLease(t *testing.T) {
	lease, now := &slate{reaches: true}, time.Now()
	u := unwritten{lease: lease}
	refused := errors.New("status.failures: too many")
	u.note(refused, now)
	require.Empty(t, lease.says, "it may be a moment")
	u.note(refused, now.Add(unwrittenAfter))
	require.Equal(t, "status.failures: too many", lease.says)
	u.note(nil, now.Add(2*unwrittenAfter))
	require.Empty(t, lease.says)

	lease.reaches = false
	u.note(refused, now)
	u.note(refused, now.Add(time.Hour))
	require.Empty(t, lease.says, "the API is away, which the Lease tells")
	lease.reaches = true
	u.note(refused, now.Add(time.Hour))
	require.Empty(t, lease.says, "it is just back")
	without := unwritten{}
	without.note(refused, now)
}
