package gateway

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
)

func TestHoldersAreRememberedUntilTheyArePurged(t *testing.T) {
	h := newHolders(filepath.Join(t.TempDir(), "state", "backends.json"))
	all, err := h.read()
	require.NoError(t, err)
	require.Empty(t, all, "a gateway that has never run")
	first := holder{Path: "/usr/bin/kubelb-backend-nftables", Options: map[string]string{"table": "blue"}}
	require.NoError(t, h.note("nftables", first))
	require.NoError(t, h.note("envoy", holder{Path: "/usr/bin/kubelb-backend-envoy"}))
	require.NoError(t, h.note("nftables", first), "a backend that is started again is noted once")
	all, err = h.read()
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, first, all["nftables"])
	require.NoError(t, h.strike("nftables"))
	all, err = h.read()
	require.NoError(t, err)
	require.NotContains(t, all, "nftables")
	require.NoError(t, os.WriteFile(h.path, []byte("{"), 0o600))
	_, err = h.read()
	require.ErrorContains(t, err, "which backends hold something here")
}

func TestABackendThatCannotBeConfiguredHoldsNothing(t *testing.T) {
	h := newHolders(filepath.Join(t.TempDir(), "backends.json"))
	fails := func() error { return errors.New("no") }
	require.Error(t, h.during("envoy", holder{Path: "/a"}, fails))
	all, err := h.read()
	require.NoError(t, err)
	require.Empty(t, all)
	require.NoError(t, h.during("envoy", holder{Path: "/a"}, func() error {
		all, err := h.read()
		require.NoError(t, err)
		require.Contains(t, all, "envoy", "it may be killed in between")
		return nil
	}))
	require.Error(t, h.during("envoy", holder{Path: "/b"}, fails))
	all, err = h.read()
	require.NoError(t, err)
	require.Equal(t, "/a", all["envoy"].Path, "that way it could be started")
	require.NoError(t, h.during("envoy", holder{Path: "/b"}, func() error { return nil }))
	all, err = h.read()
	require.NoError(t, err)
	require.Equal(t, "/b", all["envoy"].Path)
}

func TestAFormerBackendWhoseBinaryIsGoneIsNamedWithWhatToDo(t *testing.T) {
	o := BackendOptions{Path: "/usr/bin/kubelb-backend-envoy", Config: dataplane.Config{StateDir: t.TempDir()}}
	g := New(Options{Name: "g", Backend: o, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	require.NoError(t, g.holders.note("nftables", holder{Path: "/nowhere/kubelb-backend-nftables"}))
	leftovers := g.purgeOthers(t.Context())
	require.Contains(t, leftovers["nftables"], "put its binary back")
	all, err := g.holders.read()
	require.NoError(t, err)
	require.Contains(t, all, "nftables", "it is tried again")
}

func TestEachBackendHasADirectoryOfItsOwn(t *testing.T) {
	ours := BackendOptions{Path: "/usr/bin/kubelb-backend-envoy", Config: dataplane.Config{StateDir: "/var/lib/kubelb"}}
	require.Equal(t, "/var/lib/kubelb/envoy", ours.config().StateDir)
	theirs := BackendOptions{Path: "/opt/acme/dataplane", Config: dataplane.Config{StateDir: "/var/lib/kubelb"}}
	require.Equal(t, "/var/lib/kubelb/dataplane", theirs.config().StateDir)
}
