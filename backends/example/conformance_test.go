package example

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
)

var golden = flag.Bool("golden", false, "write report.yaml again")

// Cases that this proxy cannot pass. It adds external addresses to the host, so the host's own sockets are reachable at them, and the
// host answers ARP requests for them. All connections end with the process, and it does not watch its addresses.
var expectedFailures = map[string][]string{
	"other-ports-reach-nothing": {"IPv4", "IPv6"}, "announces-nothing": {"IPv4"}, "killed-during-apply": {"IPv4"}, "restart": {"IPv4", "IPv6"}, "watch": {"IPv4", "IPv6"},
}

func TestTheSuiteFindsTheLimitsOfAProxyInUserSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	binary := filepath.Join(t.TempDir(), "kubelb-backend-example")
	output, err := exec.Command("go", "build", "-o", binary, "./cmd/kubelb-backend-example").CombinedOutput()
	require.NoError(t, err, string(output))
	report, err := conformance.RunCases(t.Context(), conformance.Plugin(binary), conformance.Options{})
	require.NoError(t, err)
	if *golden {
		text, err := report.YAML()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile("report.yaml", text, 0o644))
	}
	for _, run := range report.Runs {
		want := conformance.Passed
		if slices.Contains(expectedFailures[run.Case], run.Family) {
			want = conformance.Failed
		}
		if run.Outcome != conformance.Unsupported {
			require.Equal(t, want, run.Outcome, "%s in %s: %s", run.Case, run.Family, run.Reason)
		}
	}
}
