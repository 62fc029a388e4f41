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

var golden = flag.Bool("golden", false, "write the table in docs/dataplanes.md")

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

func TestTheTableHasTheNewestReleaseOnWhichADataplaneWasJudged(t *testing.T) {
	on := func(release, name, date string) Result {
		return Result{Kernel: "6.12/amd64", Release: release, Backend: "ebpf", Case: name, Outcome: conformance.Passed, Date: date}
	}
	require.Contains(t, Table([]Result{on("6.12.9", "tcp-echo", "2026-11-02"), on("6.12.8", "drain", "2026-11-01"), on("6.12.8", "direct", "2026-11-01")}, []string{"ebpf"}),
		"| 6.12/amd64 | 6.12.9 | 2026-11-02 | 1 passed |")
	require.Contains(t, Table([]Result{on("6.12.8", "drain", "2026-11-02"), on("6.12.8", "direct", "2026-11-02"), on("6.12.9", "tcp-echo", "2026-11-02")}, []string{"ebpf"}),
		"| 6.12/amd64 | 6.12.9 | 2026-11-02 | 1 passed |", "of one day, the last result in the file counts")
	other := on("6.12.8", "drain", "2026-11-01")
	other.Backend = "nftables"
	require.Contains(t, Table([]Result{on("6.12.9", "tcp-echo", "2026-11-02"), other}, []string{"ebpf", "nftables"}),
		"| 6.12/amd64 | 6.12.9 | 2026-11-02 | 1 passed | 1 passed (6.12.8) |", "a dataplane that was tested on an older release")
}

func TestARunReplacesAllEarlierResultsOfItsCase(t *testing.T) {
	of := func(family string, outcome conformance.Outcome) Result {
		return Result{Kernel: "6.12/amd64", Release: "6.12.9", Backend: "ebpf", Case: "tcp-echo", Family: family, Outcome: outcome, Date: "2026-11-02"}
	}
	other := of("IPv4", conformance.Passed)
	other.Case = "drain"
	unjudged, v4, v6 := of("", conformance.Failed), of("IPv4", conformance.Passed), of("IPv6", conformance.Passed)
	require.Equal(t, []Result{v4, v6, other}, newest([]Result{unjudged, other, v4, v6}), "results of families replace a failure without one")
	require.Equal(t, []Result{unjudged, other}, newest([]Result{v4, v6, other, unjudged}))
	later := of("IPv4", conformance.Failed)
	require.Equal(t, []Result{later}, newest([]Result{v4, v6, later}), "a run of one family replaces the results of both")
	v6.Commit = "abc1234"
	require.Equal(t, []Result{v6}, newest([]Result{v4, v6}), "results of two commits belong to two runs")
}

// committedResults returns the results in the directory results.
func committedResults(t *testing.T) (all []Result) {
	t.Helper()
	files, err := filepath.Glob("results/*.json")
	require.NoError(t, err)
	for _, file := range files {
		inFile, err := results.Read[Result](file)
		require.NoError(t, err, file)
		all = append(all, inFile...)
	}
	return all
}

func TestTheDocumentationShowsTheResults(t *testing.T) {
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

func TestTheDocumentationNamesTheSuitesWithKernels(t *testing.T) {
	text, err := os.ReadFile(documentation)
	require.NoError(t, err)
	for _, suite := range suites {
		require.Regexp(t, `\b`+suite+`\b`, string(text))
	}
}
