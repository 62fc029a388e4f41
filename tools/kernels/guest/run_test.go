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

// printed is what the function prints.
func printed(t *testing.T, do func()) string {
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

func TestAStepHasEndedOnlyWhenItsResultsAreSent(t *testing.T) {
	sent := 0
	text := printed(t, func() {
		require.NoError(t, carryOut([]Step{{Name: "a", Args: shell("exit 3")}}, func() (int64, error) {
			sent++
			_, err := os.Stdout.WriteString("sent")
			return 512, err
		}))
	})
	require.Equal(t, 1, sent)
	require.Equal(t, "\nkernels: began a\nsent\nkernels: ended a 3 512\n", text, "a line that another program left open is ended first")
	text = printed(t, func() {
		require.ErrorContains(t, carryOut([]Step{{Name: "a", Args: shell("true")}}, func() (int64, error) { return 0, errors.New("no device") }), "results of step a: no device")
	})
	require.NotContains(t, text, StepEnded)
}

func TestAStepThatRunsForTooLongEndsWithAllThatItStarted(t *testing.T) {
	child := filepath.Join(t.TempDir(), "child")
	step := Step{Name: "hangs", Args: shell("sleep 600 & echo $! > " + child + "; wait"), Limit: 300 * time.Millisecond}
	status, err := step.run(time.Minute)
	require.NoError(t, err)
	require.Equal(t, StatusLimit, status)
	text, err := os.ReadFile(child)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !runs(pid) }, 10*time.Second, 10*time.Millisecond)
}

// runs tells whether the process is there and not only waits for its parent.
func runs(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ") && syscall.Kill(pid, 0) == nil
}

func TestAStepThatDoesNotEndWhenItIsToldToIsKilled(t *testing.T) {
	began := time.Now()
	status, err := Step{Name: "deaf", Args: shell("trap '' TERM; sleep 600"), Limit: 100 * time.Millisecond}.run(200 * time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, StatusLimit, status)
	require.Less(t, time.Since(began), time.Minute)
}

func TestAStepWithinItsLimitKeepsItsStatus(t *testing.T) {
	for script, want := range map[string]int{"exit 5": 5, "kill -9 $$": 137} {
		status, err := Step{Args: shell(script), Limit: time.Minute}.run(time.Second)
		require.NoError(t, err)
		require.Equal(t, want, status)
	}
}
