package kernels

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/tools/results"
)

var golden = flag.Bool("golden", false, "write the table in docs/dataplanes.md anew")

const documentation = "../../docs/dataplanes.md"

var tableInDocumentation = regexp.MustCompile(`(?s)(<!-- kernels: make kernels-table -->\n).*?(<!-- end of kernels -->)`)

func TestTheTableCountsTheLastResultOfEachCase(t *testing.T) {
	result := func(kernel, backend, family string, outcome conformance.Outcome, date string) Result {
		return Result{Kernel: kernel, Release: kernel[:4] + ".9", Backend: backend, Case: "tcp-echo", Family: family, Outcome: outcome, Date: date}
	}
	text := Table([]Result{
		result("6.12/amd64", "ebpf", "IPv4", conformance.Failed, "2026-11-01"), result("6.12/amd64", "ebpf", "IPv4", conformance.Passed, "2026-11-02"),
		result("6.12/amd64", "ebpf", "IPv6", conformance.Unsupported, "2026-11-02"), result("6.1/arm64", "nftables", "IPv4", conformance.Failed, "2026-11-01"),
	}, []string{"nftables", "ebpf"})
	require.Equal(t, `| kernel | release | day | nftables | ebpf |
| --- | --- | --- | --- | --- |
| 6.1/arm64 | 6.1/.9 | 2026-11-01 | 0 passed, 1 failed | not run |
| 6.12/amd64 | 6.12.9 | 2026-11-02 | not run | 1 passed, 1 unsupported |
`, text)
}

// committedResults are those of emulated kernels, and those of the kernel that the reports of the conformance suite were made on.
func committedResults(t *testing.T) (all []Result) {
	t.Helper()
	files, err := filepath.Glob("results/*.json")
	require.NoError(t, err)
	for _, file := range files {
		of, err := results.Read[Result](file)
		require.NoError(t, err, file)
		all = append(all, of...)
	}
	return all
}

func TestTheDocumentationShowsWhatTheResultsSay(t *testing.T) {
	text, err := os.ReadFile(documentation)
	require.NoError(t, err)
	require.True(t, tableInDocumentation.Match(text))
	want := tableInDocumentation.ReplaceAll(text, []byte("${1}"+Table(committedResults(t), []string{"nftables", "envoy", "ebpf"})+"${2}"))
	if *golden {
		require.NoError(t, os.WriteFile(documentation, want, 0o644))
		return
	}
	require.Equal(t, string(want), string(text), "run 'make kernels-table'")
}
