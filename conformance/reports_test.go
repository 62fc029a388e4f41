package conformance

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/broken"
)

var golden = flag.Bool("golden", false, "write the tables of the documents")

// matrixDocument has the table of features.
const matrixDocument = "../docs/status.md"

var matrixInDocument = regexp.MustCompile(`(?s)(<!-- matrix: make report -->\n).*?(<!-- end of matrix -->)`)

func committedReports(t *testing.T) []Report {
	t.Helper()
	files, err := filepath.Glob("reports/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var reports []Report
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		report, err := ReadReport(text)
		require.NoError(t, err, file)
		reports = append(reports, report)
	}
	return reports
}

func TestCommittedReportsHaveAllCases(t *testing.T) {
	for _, report := range committedReports(t) {
		var names []string
		for _, run := range report.Runs {
			if len(names) == 0 || names[len(names)-1] != run.Case {
				names = append(names, run.Case)
			}
		}
		require.Equal(t, Names(), names, "the report of %s does not have the current cases: run 'make conformance' and 'make report'", report.Backend.Name)
		require.Zero(t, report.Counts[Failed], "%s", report.Backend.Name)
		require.Empty(t, report.Partial, "%s", report.Backend.Name)
		require.Empty(t, report.Judgement.Cases, "%s", report.Backend.Name)
		require.Empty(t, report.Judgement.Feature, "%s", report.Backend.Name)
	}
}

func TestTheStatusPageShowsTheReports(t *testing.T) {
	text, err := os.ReadFile(matrixDocument)
	require.NoError(t, err)
	require.True(t, matrixInDocument.Match(text))
	want := matrixInDocument.ReplaceAll(text, []byte("${1}"+Matrix(committedReports(t))+"${2}"))
	if *golden {
		require.NoError(t, os.WriteFile(matrixDocument, want, 0o644))
		return
	}
	require.Equal(t, string(want), string(text), "run 'make report'")
}

var mutationsInReadme = regexp.MustCompile(`(?s)(<!-- broken: make report -->\n).*?(<!-- end of broken -->)`)

func TestTheReadmeListsTheBrokenBackends(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	require.True(t, mutationsInReadme.Match(text))
	want := mutationsInReadme.ReplaceAll(text, []byte("${1}"+mutationTable()+"${2}"))
	if *golden {
		require.NoError(t, os.WriteFile("README.md", want, 0o644))
		return
	}
	require.Equal(t, string(want), string(text), "run 'make report'")
}

func mutationTable() string {
	caughtBy := map[string][]string{}
	for _, m := range broken.Mutations() {
		name := m.Name
		if others := len(m.CaughtBy) - 1; others > 0 {
			name += fmt.Sprintf(" (+%d)", others)
		}
		caughtBy[m.CaughtBy[0]] = append(caughtBy[m.CaughtBy[0]], name)
	}
	table := "| case | mutations that it catches |\n| --- | --- |\n"
	for _, name := range Names() {
		table += fmt.Sprintf("| %s | %s |\n", name, strings.Join(caughtBy[name], ", "))
	}
	return table
}

func TestTheMatrixDistinguishesUnsupportedFromFailed(t *testing.T) {
	run := func(name string, outcome Outcome) Run { return Run{Case: name, Profile: "core", Outcome: outcome} }
	needs := func(name string, outcome Outcome, features ...dataplane.Feature) Run {
		return Run{Case: name, Profile: "extended", Needs: features, Outcome: outcome}
	}
	good := Report{Backend: Backend{Name: "good", Features: []dataplane.Feature{dataplane.Drain}}, Runs: []Run{run("a", Passed), run("b", Passed),
		needs("weights", Unsupported, dataplane.Weights), needs("drain", Passed, dataplane.Drain), needs("direct-drain", Unsupported, dataplane.Drain, dataplane.Direct)}}
	bad := Report{Backend: Backend{Name: "bad", Features: []dataplane.Feature{dataplane.Weights}}, Runs: []Run{run("a", Passed), run("b", Failed)}}
	text := Matrix([]Report{good, bad})
	require.Contains(t, text, "| core | yes (2) | **fails** |")
	require.Contains(t, text, "| weights | no | not tested |")
	require.Contains(t, text, "| drain | yes (1) | no |", "a case that also needs an undeclared feature does not count")
}
