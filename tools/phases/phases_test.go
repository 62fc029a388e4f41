package phases

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// runShell runs phases that are shell commands.
func runShell(t *testing.T, out *bytes.Buffer, steps ...Step) []Result {
	r := Runner{Out: out, Command: func(ctx context.Context, p Phase) *exec.Cmd { return exec.CommandContext(ctx, "sh", "-c", p[1]) }}
	return r.Run(t.Context(), steps)
}

func TestAPhaseIsATargetAndItsVariables(t *testing.T) {
	steps, err := Parse([]string{"unit", "fleet + install-test BACKEND=nftables"})
	require.NoError(t, err)
	require.Equal(t, []Step{{{"unit"}}, {{"fleet"}, {"install-test", "BACKEND=nftables"}}}, steps)
	for _, wrong := range []string{"", "unit + ", "unit +  + wasm"} {
		_, err = Parse([]string{"unit", wrong})
		require.ErrorContains(t, err, strconv.Quote(wrong))
	}
}

func TestPhasesContinueAfterAFailure(t *testing.T) {
	var out bytes.Buffer
	results := runShell(t, &out, Step{{"one", "echo a; exit 3"}}, Step{{"two", "echo b"}})
	require.ErrorContains(t, results[0].Err, "exit status 3")
	require.NoError(t, results[1].Err)
	require.Equal(t, "\n== one echo a; exit 3\na\n\n== two echo b\nb\n", out.String())
	require.False(t, Sum(&out, results, 0))
}

func TestPhasesOfAStepRunAtTheSameTime(t *testing.T) {
	var out bytes.Buffer
	meet := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(meet, 0o600))
	// Each side of a FIFO waits until the other one opens it.
	results := runShell(t, &out, Step{{"one", "echo hello > " + meet}, {"two", "cat " + meet + "; exit 3"}})
	require.NoError(t, results[0].Err)
	require.ErrorContains(t, results[1].Err, "exit status 3")
	require.Contains(t, out.String(), "\ntwo: hello\n", "a line says of which phase it is")
	require.False(t, Sum(&out, results, 0))
}

func TestAFailureInAStepOfSeveralPhasesIsFound(t *testing.T) {
	var out bytes.Buffer
	results := runShell(t, &out, Step{{"e2e", "echo 'ebpf: --- FAIL: TestTwo (1.00s)'; exit 1"}, {"fleet", "true"}})
	require.Equal(t, []Failure{{"ebpf TestTwo", "make e2e BACKEND=ebpf RUN='^TestTwo$$'"}}, results[0].Failures)
}

func TestNoPhaseStartsAfterTheContextEnds(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	r := Runner{Out: &bytes.Buffer{}, Command: func(ctx context.Context, p Phase) *exec.Cmd {
		stop()
		return exec.CommandContext(ctx, "sleep", "60")
	}}
	began := time.Now()
	require.Len(t, r.Run(ctx, []Step{{{"one"}}, {{"two"}}}), 1)
	require.Less(t, time.Since(began), 30*time.Second)
}

func TestEachFailureComesWithTheCommandThatRunsItAlone(t *testing.T) {
	for _, c := range []struct {
		phase Phase
		lines string
		want  Counts
	}{
		{Phase{"unit"}, "ok  \tkubelb.k8c.io/core/ipam\t0.1s\n--- FAIL: TestOne (0.00s)\n    --- FAIL: TestOne/part (0.00s)\nFAIL\nFAIL\tkubelb.k8c.io/manager/gateway\t1.2s\nFAIL",
			Counts{Packages: 1, Failures: []Failure{{"manager/gateway TestOne", "cd manager/gateway && GOWORK=off go test -count=1 -run='^TestOne$' ."}}}},
		{Phase{"e2e"}, "nftables: --- PASS: TestOne (1.00s)\nebpf: --- FAIL: TestTwo (1.00s)\nebpf:     --- FAIL: TestTwo/part (1.00s)",
			Counts{Tests: 1, Failures: []Failure{{"ebpf TestTwo", "make e2e BACKEND=ebpf RUN='^TestTwo$$'"}}}},
		{Phase{"conformance"}, "ebpf-xdp: passed      tcp-echo                    IPv4     2.31s\nebpf-xdp: failed      direct                      IPv4     2.31s\nebpf-xdp: failed      direct   IPv6     2.31s",
			Counts{Cases: 1, Failures: []Failure{{"ebpf-xdp direct", "make judge-ebpf-xdp CASE=direct"}}}},
		{Phase{"install-test", "BACKEND=nftables"}, "--- FAIL: TestOne (0.00s)", Counts{Failures: []Failure{{"TestOne", "make install-test BACKEND=nftables"}}}},
	} {
		counter := counter{phase: c.phase}
		for line := range strings.SplitSeq(c.lines, "\n") {
			counter.read(line)
		}
		require.Equal(t, c.want, counter.end(), "%v", c.phase)
	}
}

func TestTheSumNamesPhasesTimesAndFailures(t *testing.T) {
	var out bytes.Buffer
	require.False(t, Sum(&out, []Result{
		{Phase: Phase{"unit"}, Took: 62 * time.Second, Busy: 0.95, Counts: Counts{Packages: 80}},
		{Phase: Phase{"e2e"}, Took: time.Hour, Busy: 0.5, Err: context.DeadlineExceeded, Counts: Counts{Tests: 3, Failures: []Failure{{"ebpf TestTwo", "make e2e BACKEND=ebpf RUN='^TestTwo$$'"}}}}}, 61*time.Minute))
	require.Equal(t, `
PHASE  RESULT  TIME    PROCESSORS  PASSED
unit   passed  1m2s    95 %        80 packages
e2e    FAILED  1h0m0s  50 %        3 tests
               1h1m0s

e2e failed: context deadline exceeded. To run it alone: make e2e
  ebpf TestTwo: make e2e BACKEND=ebpf RUN='^TestTwo$$'
`, out.String())
}
