package kernels

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/tools/kernels/guest"
)

// emulator installs a script instead of QEMU, and returns a kernel. The script has the path of the results as $results, the number of the boot as $boot, and
// the directory of the test's files as $here.
func emulator(t *testing.T, script string) (k Kernel, here string) {
	t.Helper()
	here = t.TempDir()
	text := `#!/bin/bash
here=$(dirname "$0"); for a in "$@"; do case $a in *path=*) results=${a##*path=};; esac; done
echo >> "$here/boots"; boot=$(wc -l < "$here/boots")
` + script
	for _, m := range machines {
		require.NoError(t, os.WriteFile(filepath.Join(here, m.binary), []byte(text), 0o755))
	}
	t.Setenv("PATH", here+":"+os.Getenv("PATH"))
	tree := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(tree, "boot"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "boot/config-6.12.9"), nil, 0o644))
	return Kernel{Spec: Spec{"6.12", "amd64"}, Release: "6.12.9", image: "vmlinuz", tree: tree}, here
}

// writeSent writes a part of the archive that a guest sends, with files by name and content.
func writeSent(t *testing.T, path string, files ...[2]string) {
	t.Helper()
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, f := range files {
		require.NoError(t, archive.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}))
		_, err := archive.Write([]byte(f[1]))
		require.NoError(t, err)
	}
	require.NoError(t, archive.Flush())
	require.NoError(t, os.WriteFile(path, out.Bytes(), 0o644))
}

func runOf(t *testing.T, steps ...guest.Step) (Run, *bytes.Buffer) {
	t.Helper()
	init := filepath.Join(t.TempDir(), "init")
	require.NoError(t, os.WriteFile(init, nil, 0o755))
	var out bytes.Buffer
	return Run{Plan: guest.Plan{Steps: steps}, Init: init, ResultsDir: t.TempDir(), Console: &out, Silence: time.Minute}, &out
}

func TestResultsOfAStepAreThereWhenItHasEnded(t *testing.T) {
	k, here := emulator(t, `cat "$here/first" > "$results"; echo 'kernels: ended a 0'; for i in {1..400}; do [ -e "$here/go" ] && break; sleep 0.05; done
cat "$here/second" >> "$results"; echo 'kernels: ended b 1'; echo 'kernels: all steps have ended'`)
	writeSent(t, filepath.Join(here, "first"), [2]string{"a", "of a"})
	writeSent(t, filepath.Join(here, "second"), [2]string{"b", "of b"})
	run, _ := runOf(t, stepsNamed("a", "b")...)
	left := map[string]string{}
	run.Ended = func(e StepResult) {
		text, err := os.ReadFile(filepath.Join(run.ResultsDir, e.Step.Name))
		require.NoError(t, err)
		left[e.Step.Name] = string(text)
		if e.Step.Name == "a" {
			require.NoFileExists(t, filepath.Join(run.ResultsDir, "b"), "the machine still runs")
			require.NoError(t, os.WriteFile(filepath.Join(here, "go"), []byte("on\n"), 0o644))
		}
	}
	statuses, err := k.Boot(t.Context(), run)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"a": 0, "b": 1}, statuses)
	require.Equal(t, map[string]string{"a": "of a", "b": "of b"}, left)
}

func TestAPlanThatEndedWithoutTheEndOfAStepIsAnError(t *testing.T) {
	k, _ := emulator(t, `echo 'kernels: ended a 0'; echo 'kernels: all steps have ended'`)
	run, _ := runOf(t, stepsNamed("a", "b")...)
	_, err := k.Boot(t.Context(), run)
	require.ErrorContains(t, err, "the plan ended, but the console does not show the end of: b")
}

func TestAGuestThatCannotContinueIsNoCrash(t *testing.T) {
	k, _ := emulator(t, `echo 'kernels: began a'; echo 'kernels: cannot go on: step a: start /x: not found'`)
	run, _ := runOf(t, stepsNamed("a")...)
	_, err := k.Boot(t.Context(), run)
	require.ErrorContains(t, err, "the guest could not continue: step a: start /x: not found")
	var crash *Crash
	require.NotErrorAs(t, err, &crash)
}

func TestASilentMachineHasCrashedAtItsStep(t *testing.T) {
	k, _ := emulator(t, `echo 'kernels: began a'; exec sleep 600`)
	run, _ := runOf(t, stepsNamed("a")...)
	run.Silence = 2 * time.Second
	_, err := k.Boot(t.Context(), run)
	require.ErrorIs(t, err, errSilent)
	var crash *Crash
	require.ErrorAs(t, err, &crash)
	require.Equal(t, "a", crash.Step.Name)
	require.Equal(t, "the machine was silent for 2s", crash.Reason)
}

func TestAMachineThatDoesNotStopAStepAtItsLimitHangs(t *testing.T) {
	k, _ := emulator(t, `echo 'kernels: began a'; while sleep 0.05; do echo 'kernels: a has run'; done`)
	run, _ := runOf(t, guest.Step{Name: "a", Limit: 100 * time.Millisecond})
	run.HungAfter = 100 * time.Millisecond
	_, err := k.Boot(t.Context(), run)
	require.ErrorIs(t, err, errHung)
	var crash *Crash
	require.ErrorAs(t, err, &crash)
	require.True(t, strings.HasPrefix(crash.Reason, "the machine hung"))
}
