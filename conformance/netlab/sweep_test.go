package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Two suites that start at the same time find the same leftovers of a suite that was killed.
func TestLeftoversAreRemovedBySeveralProcessesAtOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	ended := exec.Command("true")
	require.NoError(t, ended.Run())
	prefix := fmt.Sprintf("klsweep%d", os.Getpid())
	all := func() []string {
		paths, err := filepath.Glob(filepath.Join(namespaceDir, prefix+"-*"))
		require.NoError(t, err)
		return paths
	}
	t.Cleanup(func() {
		for _, path := range all() {
			_ = removeNamespace(path)
		}
	})
	killed := &Lab{prefix: fmt.Sprintf("%s-%ds1-", prefix, ended.Process.Pid)}
	for i := range 20 {
		ns, err := killed.Namespace(fmt.Sprint(i))
		require.NoError(t, err)
		require.NoError(t, ns.handle.Close())
	}
	require.NoError(t, os.WriteFile(filepath.Join(namespaceDir, killed.prefix+"unmounted"), nil, 0o600))
	running := New(prefix)
	_, err := running.Namespace("stays")
	require.NoError(t, err)

	results := make(chan error, 8)
	for range cap(results) {
		go func() {
			_, err := Sweep(prefix)
			results <- err
		}()
	}
	for range cap(results) {
		require.NoError(t, <-results)
	}
	require.Equal(t, []string{filepath.Join(namespaceDir, running.namespaces[0].Name)}, all())
	require.NoError(t, running.Close())
}

func TestWhatAnEndedProcessLeftIsRemovedWithItsProcesses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	t.Setenv("TMPDIR", t.TempDir())
	ended := exec.Command("true")
	require.NoError(t, ended.Run())
	prefix := fmt.Sprintf("klleft%d", os.Getpid())
	killed := &Lab{prefix: fmt.Sprintf("%s-%ds1-", prefix, ended.Process.Pid)}
	host, err := killed.Namespace("host")
	require.NoError(t, err)
	require.NoError(t, host.MountBPF())
	require.NoError(t, host.MountMemory())
	require.NoError(t, host.Do(func() error { return os.WriteFile("/dev/shm/"+prefix, []byte("of the host"), 0o600) }))
	require.NoFileExists(t, "/dev/shm/"+prefix, "the host has its own")
	sleep := exec.Command("sleep", "1000")
	require.NoError(t, host.Do(sleep.Start))
	theirs := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%ds1-directory", directoryPrefix, ended.Process.Pid))
	require.NoError(t, os.MkdirAll(filepath.Join(theirs, "state"), 0o700))
	mine, err := TempDir()
	require.NoError(t, err)

	left, err := Sweep(prefix)
	require.NoError(t, err)
	require.Equal(t, Leftovers{Namespaces: 1, Processes: 1, Directories: 1}, left)
	require.NoFileExists(t, filepath.Join(namespaceDir, host.Name))
	require.NoDirExists(t, theirs)
	require.DirExists(t, mine)
	_, runs := startOf(sleep.Process.Pid)
	require.False(t, runs)
	left, err = Sweep(prefix)
	require.NoError(t, err)
	require.True(t, left.Empty())
}

func TestAnOwnerIsKnownByItsIDAndItsStart(t *testing.T) {
	zombie := exec.Command("true")
	require.NoError(t, zombie.Start())
	t.Cleanup(func() { _ = zombie.Wait() })
	require.Eventually(t, func() bool { _, runs := startOf(zombie.Process.Pid); return !runs }, 10*time.Second, time.Millisecond)
	start, runs := startOf(os.Getpid())
	require.True(t, runs)
	for name, ended := range map[string]bool{
		ownedPrefix("p") + "1-a":                                  false,
		fmt.Sprintf("p-%ds%x-1-a", os.Getpid(), start):            false,
		fmt.Sprintf("p-%ds%x-1-a", os.Getpid(), start+1):          true,
		fmt.Sprintf("p-%ds%x-1-a", zombie.Process.Pid, start):     true,
		fmt.Sprintf("p-%d-%x-a", os.Getpid(), start+1):            false, // of a former version of the suite
		fmt.Sprintf("p-%d-%x-a", zombie.Process.Pid, start):       true,
		fmt.Sprintf("p-%ds%x", os.Getpid(), start+1):              false,
		fmt.Sprintf("other-%ds%x-1-a", zombie.Process.Pid, start): false,
		fmt.Sprintf("pp-%ds%x-1-a", zombie.Process.Pid, start):    false,
		fmt.Sprintf("p-%dsnothing-1-a", os.Getpid()):              false,
		fmt.Sprintf("p-%dd%x-1-a", zombie.Process.Pid, start):     false,
		"p-0s1-a": false, "p--1s1-a": false, "p-": false, "p": false,
	} {
		require.Equal(t, ended, ownerEnded(name, "p"), name)
	}
}
