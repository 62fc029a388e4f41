package example

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
)

var golden = flag.Bool("golden", false, "write report.yaml again")

// Cases that this proxy cannot pass: the gateway's own sockets are reachable at its addresses, all connections end with
// the process, and it does not watch its addresses.
var expectedFailures = []string{"other-ports-reach-nothing", "killed-during-apply", "restart", "watch"}

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
		for _, name := range expectedFailures {
			if run.Case == name {
				want = conformance.Failed
			}
		}
		if run.Outcome != conformance.Unsupported {
			require.Equal(t, want, run.Outcome, "%s in %s: %s", run.Case, run.Family, run.Reason)
		}
	}
}
