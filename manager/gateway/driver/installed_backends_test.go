package driver

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
	i := newInstalledBackends(filepath.Join(t.TempDir(), "state", "backends.json"))
	all, err := i.read()
	require.NoError(t, err)
	require.Empty(t, all, "a gateway that has never run")
	first := installedBackend{Path: "/usr/bin/kubelb-backend-nftables", Options: map[string]string{"table": "blue"}}
	require.NoError(t, i.note("nftables", first))
	require.NoError(t, i.note("envoy", installedBackend{Path: "/usr/bin/kubelb-backend-envoy"}))
	require.NoError(t, i.note("nftables", first), "a backend that is started again is noted once")
	all, err = i.read()
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, first, all["nftables"])
	require.NoError(t, i.remove("nftables"))
	all, err = i.read()
	require.NoError(t, err)
	require.NotContains(t, all, "nftables")
	require.NoError(t, os.WriteFile(i.path, []byte("{"), 0o600))
	_, err = i.read()
	require.ErrorContains(t, err, "which backends hold something here")
}

func TestABackendThatCannotBeConfiguredHoldsNothing(t *testing.T) {
	i := newInstalledBackends(filepath.Join(t.TempDir(), "backends.json"))
	fails := func() error { return errors.New("no") }
	require.Error(t, i.recordWhile("envoy", installedBackend{Path: "/a"}, fails))
	all, err := i.read()
	require.NoError(t, err)
	require.Empty(t, all)
	require.NoError(t, i.recordWhile("envoy", installedBackend{Path: "/a"}, func() error {
		all, err := i.read()
		require.NoError(t, err)
		require.Contains(t, all, "envoy", "it may be killed in between")
		return nil
	}))
	require.Error(t, i.recordWhile("envoy", installedBackend{Path: "/b"}, fails))
	all, err = i.read()
	require.NoError(t, err)
	require.Equal(t, "/a", all["envoy"].Path, "that way it could be started")
	require.NoError(t, i.recordWhile("envoy", installedBackend{Path: "/b"}, func() error { return nil }))
	all, err = i.read()
	require.NoError(t, err)
	require.Equal(t, "/b", all["envoy"].Path)
}

func TestAFormerBackendWhoseBinaryIsGoneIsNamedWithWhatToDo(t *testing.T) {
	o := Backend{Path: "/usr/bin/kubelb-backend-envoy", Config: dataplane.Config{StateDir: t.TempDir()}}
	driver := New(Options{Backend: o, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, driver.installed.note("nftables", installedBackend{Path: "/nowhere/kubelb-backend-nftables"}))
	unpurged := driver.purgeOthers(t.Context())
	require.Contains(t, unpurged["nftables"], "put its binary back")
	all, err := driver.installed.read()
	require.NoError(t, err)
	require.Contains(t, all, "nftables", "it is tried again")
}

func TestEachBackendHasADirectoryOfItsOwn(t *testing.T) {
	ours := Backend{Path: "/usr/bin/kubelb-backend-envoy", Config: dataplane.Config{StateDir: "/var/lib/kubelb"}}
	require.Equal(t, "/var/lib/kubelb/envoy", ours.config().StateDir)
	theirs := Backend{Path: "/opt/acme/dataplane", Config: dataplane.Config{StateDir: "/var/lib/kubelb"}}
	require.Equal(t, "/var/lib/kubelb/dataplane", theirs.config().StateDir)
}
