package gateway

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever the file says of backends that hold something here, it is read, or set aside and named; and the present one is noted.
func FuzzBackendsFile(f *testing.F) {
	for _, text := range []string{`{"nftables":{"path":"/usr/bin/kubelb-backend-nftables","options":{"table":"blue"}}}`, `{"":{}}`, `{"a":null}`, `null`, `[]`, `{"a":{"path":1}}`, ``, "{}{}"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, own := newHolders(filepath.Join(t.TempDir(), holdersFile)), holder{Path: "/usr/bin/kubelb-backend-envoy"}
		require.NoError(t, os.WriteFile(h.path, text, 0o600))
		before, damaged := h.read()
		if damaged != nil {
			require.ErrorIs(t, damaged, errDamaged)
			require.ErrorContains(t, damaged, h.path)
		}
		require.NoError(t, h.during("envoy", own, func() error { return nil }))
		all, err := h.read()
		require.NoError(t, err)
		require.Equal(t, own, all["envoy"])
		for name, other := range before {
			if name != "envoy" {
				require.Equal(t, other, all[name])
			}
		}
		if damaged != nil {
			require.Len(t, all, 1)
			require.Len(t, h.checks(), 1, "a file that was set aside is named")
		} else {
			require.Empty(t, h.checks())
		}
	})
}
