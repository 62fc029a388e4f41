package driver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever the file holds, it is read, or set aside and reported, and the present backend is added.
func FuzzBackendsFile(f *testing.F) {
	for _, text := range []string{`{"nftables":{"path":"/usr/bin/kubelb-backend-nftables","options":{"table":"blue"}}}`, `{"":{}}`, `{"a":null}`, `null`, `[]`, `{"a":{"path":1}}`, ``, "{}{}"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		i, own := newInstalledBackends(filepath.Join(t.TempDir(), installedFile)), installedBackend{Path: "/usr/bin/kubelb-backend-envoy"}
		require.NoError(t, os.WriteFile(i.path, text, 0o600))
		before, damaged := i.read()
		if damaged != nil {
			require.ErrorIs(t, damaged, errDamaged)
			require.ErrorContains(t, damaged, i.path)
		}
		require.NoError(t, i.configure("envoy", own, func() error { return nil }))
		all, err := i.read()
		require.NoError(t, err)
		require.Equal(t, own, all["envoy"])
		for name, other := range before {
			if name != "envoy" {
				require.Equal(t, other, all[name])
			}
		}
		if damaged != nil {
			require.Len(t, all, 1)
			require.Len(t, i.checks(), 1, "a file that was set aside is reported")
		} else {
			require.Empty(t, i.checks())
		}
	})
}
