package kernels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance"
	"kubelb.k8c.io/tools/kernels/guest"
	"kubelb.k8c.io/tools/results"
)

// reportOf returns a report of a case, with outcomes for IPv4 and IPv6.
func reportOf(name string, outcomes ...conformance.Outcome) string {
	r := conformance.Report{Version: conformance.ReportVersion}
	for i, o := range outcomes {
		r.Runs = append(r.Runs, conformance.Run{Case: name, Family: []string{"IPv4", "IPv6"}[i], Outcome: o})
	}
	text, err := r.YAML()
	if err != nil {
		panic(err)
	}
	return string(text)
}

// suite returns a tester of this machine's kernel with a script instead of the suite. The script has the case as $case and the path of the report as $report.
func suite(t *testing.T, script string, cases ...string) Tester {
	t.Helper()
	programs := t.TempDir()
	text := `#!/bin/bash
for a in "$@"; do case $a in --case=*) case=${a#*=};; --report=*) report=${a#*=};; esac; done
` + script
	require.NoError(t, os.WriteFile(filepath.Join(programs, "kubelb-conformance"), []byte(text), 0o755))
	return Tester{Backends: []string{"nftables"}, Cases: cases, Patience: 1, Programs: programs, Results: filepath.Join(t.TempDir(), "results.json"), Console: io.Discard, Commit: "abc1234"}
}

// outcomes returns short forms of results.
func outcomes(all []Result) (short []string) {
	for _, r := range all {
		short = append(short, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Case, r.Family, r.Outcome, r.Reason)))
	}
	return short
}

func storedResults(t *testing.T, j Tester) []Result {
	t.Helper()
	all, err := results.Read[Result](j.Results)
	require.NoError(t, err)
	return all
}

func TestACaseIsJudgedAgainUntilItsLastRunHasNoFailure(t *testing.T) {
	k, err := Running()
	require.NoError(t, err)
	j := suite(t, `cp "$(dirname "$0")/next" "$report"`, "tcp-echo")
	run := func(outcomes ...conformance.Outcome) Results {
		require.NoError(t, os.WriteFile(filepath.Join(j.Programs, "next"), []byte(reportOf("tcp-echo", outcomes...)), 0o644))
		got, err := j.Run(t.Context(), k)
		require.NoError(t, err)
		return got
	}
	got := run(conformance.Passed, conformance.Failed)
	require.Equal(t, 1, got.Count(conformance.Failed))
	require.Equal(t, "abc1234", got.Current[0].Commit)
	got = run(conformance.Passed, conformance.Unsupported)
	require.Equal(t, []string{"tcp-echo IPv4 passed", "tcp-echo IPv6 unsupported"}, outcomes(got.Current), "one family had failed")
	require.Empty(t, got.Earlier, "replaced results do not count")
	got = run(conformance.Failed, conformance.Failed)
	require.Empty(t, got.Current, "nothing is left to test")
	require.Equal(t, 1, got.Count(conformance.Passed))
	require.Zero(t, got.Count(conformance.Failed))
	require.Len(t, storedResults(t, j), 4)
}

func TestOnlyEarlierResultsOfTheReleaseCount(t *testing.T) {
	k, err := Running()
	require.NoError(t, err)
	j := suite(t, `cp "$(dirname "$0")/next" "$report"`, "tcp-echo")
	require.NoError(t, os.WriteFile(filepath.Join(j.Programs, "next"), []byte(reportOf("tcp-echo", conformance.Passed)), 0o644))
	failed := Result{Kernel: k.String(), Release: k.Release, Backend: "ebpf", Case: "drain", Outcome: conformance.Failed, Date: "2026-01-01"}
	passed := Result{Kernel: k.String(), Release: "5.0.0", Backend: "nftables", Case: "tcp-echo", Outcome: conformance.Passed, Date: "2026-01-01"}
	require.NoError(t, errors.Join(results.Add(j.Results, failed), results.Add(j.Results, passed)))
	got, err := j.Run(t.Context(), k)
	require.NoError(t, err)
	require.Equal(t, []string{"tcp-echo IPv4 passed"}, outcomes(got.Current))
	require.Equal(t, []Result{failed}, got.Earlier)
	require.Equal(t, 1, got.Count(conformance.Failed))
}

func TestACaseWithoutAReportFailsAndTheOthersRun(t *testing.T) {
	k, err := Running()
	require.NoError(t, err)
	j := suite(t, `case $case in tcp-echo) ;; udp-reply) echo nonsense > "$report";; drain) cp "$(dirname "$0")/good" "$report"; exit 2;; *) cp "$(dirname "$0")/good" "$report";; esac`,
		"tcp-echo", "udp-reply", "drain", "direct")
	require.NoError(t, os.WriteFile(filepath.Join(j.Programs, "good"), []byte(reportOf("direct", conformance.Passed)), 0o644))
	got, err := j.Run(t.Context(), k)
	require.NoError(t, err)
	found := outcomes(got.Current)
	require.Len(t, found, 4)
	require.Equal(t, "tcp-echo  failed the case wrote no report (exit status 0)", found[0])
	require.Contains(t, found[1], "udp-reply  failed the report cannot be read: ")
	require.Equal(t, "drain IPv4 failed exit status 2, although the report has no failure", found[2])
	require.Equal(t, "direct IPv4 passed", found[3])
	require.Equal(t, got.Current, storedResults(t, j))
}

func TestResultsOfAStep(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"good": reportOf("good", conformance.Passed, conformance.Unsupported), "empty": reportOf("empty")} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "ebpf:"+name), []byte(text), 0o644))
	}
	for name, c := range map[string]struct {
		step   string
		ending StepResult
		want   []string
	}{
		"a test has no report":              {Fixtures, StepResult{}, []string{"packet-fixtures  passed"}},
		"a test has its status":             {Preflight, StepResult{Status: 1}, []string{"preflight  failed exit status 1"}},
		"an empty report":                   {"empty", StepResult{}, []string{"empty  failed the report is empty (exit status 0)"}},
		"a limit is the only failure":       {"none", StepResult{Status: guest.StatusLimit}, []string{"none  failed it exceeded the limit of 15m0s"}},
		"a test has a limit":                {Preflight, StepResult{Status: guest.StatusLimit}, []string{"preflight  failed it exceeded the limit of 15m0s"}},
		"a kernel error fails each family":  {"good", StepResult{KernelError: "BUG: x"}, []string{"good IPv4 failed BUG: x", "good IPv6 failed BUG: x"}},
		"a crash explains a missing report": {"none", StepResult{Status: statusUnknown, KernelError: "the kernel panicked"}, []string{"none  failed the kernel panicked"}},
		"a complete report":                 {"good", StepResult{}, []string{"good IPv4 passed", "good IPv6 unsupported"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.ending.Step = guest.Step{Name: stepName("ebpf", c.step), Limit: limitOfCase}
			require.Equal(t, c.want, outcomes(Tester{}.read(Kernel{}, c.ending, dir)))
		})
	}
}

func TestResultsAreStoredWhenACaseEnds(t *testing.T) {
	k, err := Running()
	require.NoError(t, err)
	j := suite(t, `if [ $case = drain ]; then cp "$(dirname "$0")/kept" "$(dirname "$0")/seen"; exec sleep 600; fi; cp "$(dirname "$0")/good" "$report"`, "tcp-echo", "drain")
	require.NoError(t, os.WriteFile(filepath.Join(j.Programs, "good"), []byte(reportOf("tcp-echo", conformance.Passed)), 0o644))
	j.Results = filepath.Join(j.Programs, "kept")
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil && !exists(filepath.Join(j.Programs, "seen")) {
			time.Sleep(10 * time.Millisecond)
		}
		stop()
	}()
	got, err := j.Run(ctx, k)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []string{"tcp-echo IPv4 passed"}, outcomes(got.Current))
	require.FileExists(t, filepath.Join(j.Programs, "seen"), "the result was stored before the next case began")
	require.Equal(t, got.Current, storedResults(t, j))
}

func TestAResultThatCannotBeStoredEndsTheRun(t *testing.T) {
	k, err := Running()
	require.NoError(t, err)
	j := suite(t, `mkdir "$(dirname "$0")/kept"; exit 1`, "tcp-echo", "drain")
	j.Results = filepath.Join(j.Programs, "kept")
	got, err := j.Run(t.Context(), k)
	require.ErrorContains(t, err, "store a result")
	require.Len(t, got.Current, 1)
}

func TestEachStepHasALimit(t *testing.T) {
	j := Tester{Backends: []string{"ebpf"}, Cases: []string{Preflight, Fixtures, "tcp-echo"}}
	var limits []time.Duration
	for _, s := range j.steps(Kernel{image: "vmlinuz"}, "/r") {
		limits = append(limits, s.Limit)
	}
	require.Equal(t, []time.Duration{40 * time.Minute, 40 * time.Minute, 15 * time.Minute}, limits)
}

func TestAfterACrashAnotherMachineRunsTheRemainingSteps(t *testing.T) {
	k, here := emulator(t, `case $boot in
1) cat "$here/a" > "$results"; printf 'kernels: began nftables:a\nkernels: ended nftables:a 0\nkernels: began nftables:b\n[    9.000000] Kernel panic - not syncing: x\n';;
2) cat "$here/c" > "$results"; printf 'kernels: began nftables:c\nkernels: ended nftables:c 0\nkernels: began nftables:d\n';;
3) printf 'kernels: began nftables:e\nkernels: ended nftables:e 2\nkernels: all steps have ended\n';;
esac`)
	writeSent(t, filepath.Join(here, "a"), [2]string{"nftables:a", reportOf("a", conformance.Passed)})
	writeSent(t, filepath.Join(here, "c"), [2]string{"nftables:c", reportOf("c", conformance.Passed)})
	j := suite(t, "", "a", "b", "c", "d", "e")
	require.NoError(t, os.WriteFile(filepath.Join(j.Programs, "init"), nil, 0o755))
	j.Silence = time.Minute
	got, err := j.Run(t.Context(), k)
	require.NoError(t, err, "each crash belongs to a step")
	require.Equal(t, []string{"a IPv4 passed", "b  failed the kernel panicked: Kernel panic - not syncing: x", "c IPv4 passed", "d  failed the machine ended by itself",
		"e  failed the case wrote no report (exit status 2)"}, outcomes(got.Current))
	require.Equal(t, got.Current, storedResults(t, j))
}

func TestTheHostWaitsForAReportThatIsLaterThanTheConsole(t *testing.T) {
	k, here := emulator(t, `size=$(wc -c < "$here/a"); printf "kernels: began nftables:a\nkernels: ended nftables:a 0 $size\n"; sleep 1; cat "$here/a" > "$results"; printf 'kernels: all steps have ended\n'`)
	writeSent(t, filepath.Join(here, "a"), [2]string{"nftables:a", reportOf("a", conformance.Passed)})
	j := suite(t, "", "a")
	require.NoError(t, os.WriteFile(filepath.Join(j.Programs, "init"), nil, 0o755))
	j.Silence = time.Minute
	got, err := j.Run(t.Context(), k)
	require.NoError(t, err)
	require.Equal(t, []string{"a IPv4 passed"}, outcomes(got.Current))
}

func TestAfterACrashWithoutAStepAMachineIsBootedOnlyIfAStepEnded(t *testing.T) {
	steps := stepsNamed("a", "b")
	crash := &Crash{cause: errors.New("it ended")}
	boots := 0
	err := bootAfterCrashes(steps, func(StepResult) {}, func([]guest.Step, func(StepResult)) error { boots++; return crash })
	require.ErrorIs(t, err, crash)
	require.Equal(t, 1, boots)
	var rests [][]guest.Step
	err = bootAfterCrashes(steps, func(StepResult) {}, func(rest []guest.Step, ended func(StepResult)) error {
		rests = append(rests, rest)
		ended(StepResult{Step: rest[0]})
		if len(rest) > 1 {
			return crash
		}
		return nil
	})
	require.ErrorIs(t, err, crash, "the error of a crash without a step is returned")
	require.Equal(t, [][]guest.Step{steps, steps[1:]}, rests)
	broken := errors.New("no emulator")
	boots = 0
	require.ErrorIs(t, bootAfterCrashes(steps, func(StepResult) {}, func([]guest.Step, func(StepResult)) error { boots++; return broken }), broken)
	require.Equal(t, 1, boots)
}
