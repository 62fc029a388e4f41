package gateway

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAHostIsMadeToForwardAndOneThatForwardsIsLeftAlone(t *testing.T) {
	for _, c := range []struct{ before, after string }{{"0\n", "1"}, {"1\n", "1\n"}, {"2\n", "2\n"}} {
		dir := t.TempDir()
		path := filepath.Join(dir, forwarding[0])
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(c.before), 0o644))
		require.NoError(t, prepareHost(dir), "the other family's is not there")
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, c.after, string(after))
	}
}
