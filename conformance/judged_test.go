package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/cases"
	"kubelb.k8c.io/conformance/lab"
)

// plugins makes files of plugins in a working directory.
func plugins(t *testing.T, names ...string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for _, name := range names {
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(filepath.Base(name)), 0o755))
	}
}

func TestAReportSaysWhatWasJudgedAndHow(t *testing.T) {
	plugins(t, "bin/mine", "bin/next/mine", "bin/other")
	here, err := os.Getwd()
	require.NoError(t, err)
	tested := WithOptions(Plugin(filepath.Join(here, "bin/mine")), map[string]string{"xdp": "native"})
	j, err := judgement(tested, Options{Cases: []string{"drain"}, Feature: dataplane.Drain, Patience: lab.Patience(2), Parallel: 3, KeepGoing: true,
		UpgradeTo: WithOptions(Plugin("bin/next/mine"), nil), SwitchTo: []cases.Backend{Plugin("bin/other"), InProcess(nil)}})
	require.NoError(t, err)
	mine, err := checksumOf("bin/mine")
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256([]byte("mine"))), mine)
	require.Equal(t, Judgement{
		Program: &Program{Path: "bin/mine", SHA256: mine}, BackendOptions: map[string]string{"xdp": "native"},
		UpgradeTo: &Program{Path: "bin/next/mine", SHA256: mine}, SwitchTo: []Program{{Path: "bin/other", SHA256: j.SwitchTo[0].SHA256}},
		Patience: 2, Parallel: 3, KeepGoing: true, Cases: []string{"drain"}, Feature: dataplane.Drain,
	}, j)
	require.NoError(t, j.unchanged(tested))
	require.NoError(t, os.WriteFile("bin/mine", []byte("built again"), 0o755))
	require.ErrorIs(t, j.unchanged(tested), errChanged)

	_, err = judgement(Plugin("bin/missing"), Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestADataplaneInTheTestsOwnProcessHasNoFile(t *testing.T) {
	j, err := judgement(InProcess(nil), Options{})
	require.NoError(t, err)
	require.Nil(t, j.Program)
	require.Equal(t, 1.0, j.Patience)
	require.Equal(t, 1, j.Parallel)
	require.NoError(t, j.unchanged(InProcess(nil)))
}

func TestAPathBelowTheWorkingDirectoryIsRelative(t *testing.T) {
	plugins(t, "bin/mine")
	here, err := os.Getwd()
	require.NoError(t, err)
	require.Equal(t, "bin/mine", shortPath(filepath.Join(here, "bin/mine")))
	require.Equal(t, "mine", shortPath("./mine"))
	require.Equal(t, filepath.Join(filepath.Dir(here), "mine"), shortPath("../mine"))
	require.Equal(t, "/usr/bin/mine", shortPath("/usr/bin/mine"))
}

func TestTheSuitesVersionHasItsCommit(t *testing.T) {
	require.Empty(t, commitOf(nil))
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "e9d91703ef9a8c0a2b1c"}
	require.Equal(t, "+e9d91703ef9a", commitOf([]debug.BuildSetting{commit, {Key: "vcs.modified", Value: "false"}}))
	require.Equal(t, "+e9d91703ef9a-modified", commitOf([]debug.BuildSetting{commit, {Key: "vcs.modified", Value: "true"}}))
	require.Len(t, suite().SHA256, 64)
}

func TestAReportIsReadAsItWasWritten(t *testing.T) {
	r := Report{Version: ReportVersion, Suite: Suite{"0.1.0+e9d91703ef9a", "aa"}, Partial: "interrupted during case drain: context canceled",
		Backend:   Backend{Name: "b", Version: "1", Features: []dataplane.Feature{dataplane.Drain}},
		Judgement: Judgement{Program: &Program{"bin/b", "bb"}, BackendOptions: map[string]string{"k": "v"}, Patience: 1.5, Cases: []string{"drain"}},
		Kernel:    "6.12", Machine: "x86_64", Began: "2026-12-01T10:00:00Z", Counts: map[Outcome]int{Failed: 1}, Duration: "3s",
		Runs: []Run{{Case: "drain", Shows: "it drains", Profile: cases.Extended, Family: "IPv4", Outcome: Failed, Reason: "expected: a\nseen: b", Command: "kubelb-conformance --case=drain -v"}}}
	text, err := r.YAML()
	require.NoError(t, err)
	read, err := ReadReport(text)
	require.NoError(t, err)
	require.Equal(t, r, read)
	require.Contains(t, string(text), "partial: ")

	whole := r
	whole.Partial = ""
	text, err = whole.YAML()
	require.NoError(t, err)
	require.NotContains(t, string(text), "partial")
}

func TestAReportOfTheFormerVersionIsRead(t *testing.T) {
	text := "version: v1\nbackend: {name: b, version: '1', features: []}\nkernel: k\ncounts: {passed: 1}\nduration: 1s\nruns:\n- {case: drain, shows: s, profile: core, family: IPv4, outcome: passed}\n"
	r, err := ReadReport([]byte(text))
	require.NoError(t, err)
	require.Len(t, r.Runs, 1)
	require.Nil(t, r.Judgement.Program)
	_, err = ReadReport([]byte(strings.Replace(text, "v1", "v3", 1)))
	require.ErrorContains(t, err, `the report has version "v3", but this program reads versions v1 and v2`)
}

func failedRun() Run {
	return Run{Case: "drain", Shows: "it drains", Outcome: Failed, Command: "kubelb-conformance --case=drain -v",
		Failures: []cases.Failure{{Expected: "2: of them", Seen: "3", At: "drain.go:23", During: "20 tcp flows", Details: "Error Trace: drain.go:23"}, {Seen: "another"}},
		Deaths:   []cases.Death{{Host: "g0", Status: "exit status 3", Output: "last\nwords"}}}
}

func TestAFailureIsThreeLinesAndThenWhatTheEndedPluginWrote(t *testing.T) {
	r := failedRun()
	require.Equal(t, `  expected: 2: of them (drain.go:23, 20 tcp flows)
  seen:     3 (and 1 more)
  alone:    kubelb-conformance --case=drain -v
the backend at g0 ended by itself (exit status 3) wrote:
  last
  words`, r.Explanation(false))
	require.Contains(t, r.Explanation(true), "failure 1 of 2: Error Trace: drain.go:23\nfailure 2 of 2: expected: ; seen: another")
	require.Equal(t, "expected: 2: of them (drain.go:23, 20 tcp flows)\nseen: 3\nand 1 more", reason(r.Failures))
	require.Equal(t, "expected: what the case shows\nseen: another", reason(r.Failures[1:]))
}

func TestJUnitHasTheThreeLinesAndWhatWasJudged(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, Report{Runs: []Run{failedRun()}, Counts: map[Outcome]int{Failed: 1}, Partial: "interrupted", Judgement: Judgement{Program: &Program{"bin/b", "bb"}}}.JUnit(&out))
	require.Contains(t, out.String(), `<property name="sha256" value="bb">`)
	require.Contains(t, out.String(), `<property name="partial" value="interrupted">`)
	require.Contains(t, out.String(), `failure message="it drains"`)
	require.Contains(t, out.String(), "alone:    kubelb-conformance --case=drain -v")
}

func TestAMonitorTellsWhatRuns(t *testing.T) {
	var m Monitor
	m.cases(3, 54)
	activity, end := m.begin("drain", "IPv4")
	require.NotNil(t, activity)
	_, endOther := m.begin("drain", "IPv6")
	runs, done, all := m.Running()
	require.Equal(t, []string{"IPv4", "IPv6"}, []string{runs[0].Family, runs[1].Family})
	require.Equal(t, [2]int{3, 54}, [2]int{done, all})
	end()
	runs, _, _ = m.Running()
	require.Len(t, runs, 1)
	endOther()
	runs, _, _ = m.Running()
	require.Empty(t, runs)

	var none *Monitor // a suite without a monitor
	none.cases(1, 2)
	_, end = none.begin("drain", "IPv4")
	end()
}

func TestAnUnknownCaseIsNamed(t *testing.T) {
	_, err := RunCases(context.Background(), InProcess(nil), Options{Cases: []string{"no-such-case"}})
	require.ErrorContains(t, err, `case "no-such-case" does not exist`)
}
