package guest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// captureOutput returns the output of the function.
func captureOutput(t *testing.T, do func()) string {
	t.Helper()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	stdout := os.Stdout
	os.Stdout = write
	defer func() { os.Stdout = stdout }()
	do()
	require.NoError(t, write.Close())
	text, err := io.ReadAll(read)
	require.NoError(t, err)
	return string(text)
}

func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

func TestTheEndOfAStepIsReportedAfterItsResultsAreSent(t *testing.T) {
	sent := 0
	text := captureOutput(t, func() {
		require.NoError(t, runSteps([]Step{{Name: "a", Args: shell("exit 3")}}, func() (int64, error) {
			sent++
			_, err := os.Stdout.WriteString("sent")
			return 512, err
		}))
	})
	require.Equal(t, 1, sent)
	require.Equal(t, "\nkernels: began a\nsent\nkernels: ended a 3 512\n", text, "a newline ends an incomplete line of another program")
	text = captureOutput(t, func() {
		require.ErrorContains(t, runSteps([]Step{{Name: "a", Args: shell("true")}}, func() (int64, error) { return 0, errors.New("no device") }), "results of step a: no device")
	})
	require.NotContains(t, text, StepEnded)
}

func TestAStepThatExceedsItsLimitEndsWithAllItsChildren(t *testing.T) {
	child := filepath.Join(t.TempDir(), "child")
	step := Step{Name: "hangs", Args: shell("sleep 600 & echo $! > " + child + "; wait"), Limit: 300 * time.Millisecond}
	status, err := step.run(time.Minute)
	require.NoError(t, err)
	require.Equal(t, StatusLimit, status)
	text, err := os.ReadFile(child)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !isRunning(pid) }, 10*time.Second, 10*time.Millisecond)
}

// isRunning reports whether the process exists and is no zombie.
func isRunning(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ") && syscall.Kill(pid, 0) == nil
}

func TestAStepThatIgnoresSIGTERMIsKilled(t *testing.T) {
	began := time.Now()
	status, err := Step{Name: "ignores-sigterm", Args: shell("trap '' TERM; sleep 600"), Limit: 100 * time.Millisecond}.run(200 * time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, StatusLimit, status)
	require.Less(t, time.Since(began), time.Minute)
}

func TestAStepWithinItsLimitHasItsOwnStatus(t *testing.T) {
	for script, want := range map[string]int{"exit 5": 5, "kill -9 $$": 137} {
		status, err := Step{Args: shell(script), Limit: time.Minute}.run(time.Second)
		require.NoError(t, err)
		require.Equal(t, want, status)
	}
}
