package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
			_ = sweep(path)
		}
	})
	killed := &Lab{prefix: fmt.Sprintf("%s-%d-", prefix, ended.Process.Pid)}
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
		go func() { results <- Sweep(prefix) }()
	}
	for range cap(results) {
		require.NoError(t, <-results)
	}
	require.Equal(t, []string{filepath.Join(namespaceDir, running.namespaces[0].Name)}, all())
	require.NoError(t, running.Close())
}
