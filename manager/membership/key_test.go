package membership

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelb.k8c.io/backends/statefile/smalldisk"
)

// hubWithKey returns a hub with this key.
func hubWithKey(key []byte) client.Client {
	return fake.NewClientBuilder().WithObjects(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kubelb", Name: KeySecret}, Data: map[string][]byte{keyField: key}}).Build()
}

func TestAFullDiskTruncatesNoSavedKeyAndDelaysNoGateway(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		key, next := bytes.Repeat([]byte{1}, keySize), bytes.Repeat([]byte{2}, keySize)
		log := slog.New(slog.DiscardHandler)
		require.Equal(t, key, WaitForKey(t.Context(), hubWithKey(key), "kubelb", d.Dir, log))
		d.KeepFull(t)
		for range 50 {
			for _, hubKey := range [][]byte{key, next} {
				require.Equal(t, hubKey, WaitForKey(t.Context(), hubWithKey(hubKey), "kubelb", d.Dir, log))
				saved, err := os.ReadFile(filepath.Join(d.Dir, keyFile))
				require.NoError(t, err)
				require.Len(t, saved, keySize)
			}
		}
	})
}

func TestATruncatedKeyIsWrittenAgain(t *testing.T) {
	dir, key := t.TempDir(), bytes.Repeat([]byte{1}, keySize)
	log := slog.New(slog.DiscardHandler)
	require.NoError(t, os.WriteFile(filepath.Join(dir, keyFile), key[:0], 0o600))
	require.Equal(t, key, WaitForKey(t.Context(), hubWithKey(key), "kubelb", dir, log))
	emptyHub := fake.NewClientBuilder().Build()
	require.Equal(t, key, WaitForKey(t.Context(), emptyHub, "kubelb", dir, log), "it is saved for a start without the API")
}

// Whatever the file holds, WaitForKey returns a key or nothing, and it does not wait for the hub longer than ctx.
func FuzzKeyFile(f *testing.F) {
	for _, n := range []int{0, keySize - 1, keySize, keySize + 1, 4096} {
		f.Add(bytes.Repeat([]byte{1}, n))
	}
	dir, emptyHub := f.TempDir(), fake.NewClientBuilder().Build()
	ctx, cancel := context.WithCancel(f.Context())
	cancel()
	f.Fuzz(func(t *testing.T, content []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, keyFile), content, 0o600))
		key := WaitForKey(ctx, emptyHub, "kubelb", dir, slog.New(slog.DiscardHandler))
		if len(content) >= keySize {
			require.True(t, bytes.Equal(content, key))
		} else {
			require.Nil(t, key)
		}
	})
}
