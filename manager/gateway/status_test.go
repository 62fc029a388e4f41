package gateway

import (
	"testing"

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
