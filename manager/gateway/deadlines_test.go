package gateway

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/manager/gateway/report"
)

// Who writes a plugin reads the deadlines there.
func TestTheDocumentOfPluginsHasTheDeadlinesOfCountersAndPurges(t *testing.T) {
	text, err := os.ReadFile("../../docs/plugin.md")
	require.NoError(t, err)
	require.Contains(t, string(text), fmt.Sprintf("| `Stats` and `Describe` while it runs | %s for both |", report.CountTimeout))
	require.Contains(t, string(text), fmt.Sprintf("`Stats` and `Describe` come every %.0f s", report.CountInterval.Seconds()))
	require.Contains(t, string(text), fmt.Sprintf("| `Close(purge)` when the gateway goes for good | %s |", purgeLimit))
}
