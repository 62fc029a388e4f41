package supervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A state file is read as it was written, or is an error that names the file. A process id is never that of a process group.
func FuzzStateFiles(f *testing.F) {
	f.Add([]byte(`{"launch":3,"identity":"ab","ended":"killed"}`))
	f.Add([]byte(`{"envoy":"/bin/envoy","bootstrap":"@LAUNCH@","concurrency":-1,"drainSeconds":-9223372036854775808}`))
	for _, text := range []string{"1234", "", "0", "1", "-1", "-1234\n", "4294967297", "null"} {
		f.Add([]byte(text))
	}
	dir := Dir(f.TempDir())
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, path := range []string{dir.running(), dir.wanted()} {
			require.NoError(t, os.WriteFile(path, text, 0o600))
		}
		if running, err := dir.Running(); err != nil {
			require.ErrorContains(t, err, dir.running())
		} else {
			require.NoError(t, writeJSON(filepath.Join(string(dir), "again.json"), running))
		}
		s := &supervisor{Options: Options{Dir: dir}}
		if w, identity, err := s.readWanted(); err == nil {
			require.NotEmpty(t, w.Envoy)
			require.NotEmpty(t, identity)
		}
		pid, err := parseProcessID(text)
		switch {
		case err != nil:
			require.Zero(t, pid)
		case pid == 0:
			require.Empty(t, text)
		default:
			require.Greater(t, pid, 1)
			require.Equal(t, strings.TrimLeft(strings.TrimPrefix(strings.TrimSpace(string(text)), "+"), "0"), strconv.Itoa(pid))
		}
	})
}

// A damaged process id must not get a signal: -1 is every process.
func TestADamagedLockEndsNoOtherProcess(t *testing.T) {
	dir := Dir(t.TempDir())
	lock, err := dir.acquire()
	require.NoError(t, err)
	defer lock.Close()
	pid, err := dir.Supervisor()
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), pid)
	for _, text := range []string{"-1", "0", "1", "x", "99999999999"} {
		require.NoError(t, os.WriteFile(dir.lock(), []byte(text), 0o600))
		require.ErrorContains(t, dir.Stop(t.Context()), dir.lock()+`: "`+text+`" is not a process id; end kubelb-envoy by hand`)
	}
	require.NoError(t, os.WriteFile(dir.lock(), nil, 0o600))
	pid, err = dir.Supervisor()
	require.NoError(t, err)
	require.Zero(t, pid, "the id is not written yet")
}
