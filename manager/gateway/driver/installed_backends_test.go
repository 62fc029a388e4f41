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

func TestInstalledBackendsAreKeptUntilTheyArePurged(t *testing.T) {
	i := newInstalledBackends(filepath.Join(t.TempDir(), "state", "backends.json"))
	all, err := i.read()
	require.NoError(t, err)
	require.Empty(t, all, "a gateway that has never run has no backends")
	first := installedBackend{Path: "/usr/bin/kubelb-backend-nftables", Options: map[string]string{"table": "blue"}}
	require.NoError(t, i.add("nftables", first))
	require.NoError(t, i.add("envoy", installedBackend{Path: "/usr/bin/kubelb-backend-envoy"}))
	require.NoError(t, i.add("nftables", first), "a backend is added once")
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
	require.ErrorContains(t, err, "read the list of backends with state on this host")
}

func TestABackendThatCannotBeConfiguredIsNotKept(t *testing.T) {
	i := newInstalledBackends(filepath.Join(t.TempDir(), "backends.json"))
	fails := func() error { return errors.New("no") }
	require.Error(t, i.configure("envoy", installedBackend{Path: "/a"}, fails))
	all, err := i.read()
	require.NoError(t, err)
	require.Empty(t, all)
	require.NoError(t, i.configure("envoy", installedBackend{Path: "/a"}, func() error {
		all, err := i.read()
		require.NoError(t, err)
		require.Contains(t, all, "envoy", "the process may crash in between")
		return nil
	}))
	require.Error(t, i.configure("envoy", installedBackend{Path: "/b"}, fails))
	all, err = i.read()
	require.NoError(t, err)
	require.Equal(t, "/a", all["envoy"].Path, "the backend could be started with this entry")
	require.NoError(t, i.configure("envoy", installedBackend{Path: "/b"}, func() error { return nil }))
	all, err = i.read()
	require.NoError(t, err)
	require.Equal(t, "/b", all["envoy"].Path)
}

func TestAFormerBackendWithoutItsBinaryIsReportedWithAdvice(t *testing.T) {
	o := Plugin{Path: "/usr/bin/kubelb-backend-envoy", Config: dataplane.Config{StateDir: t.TempDir()}}
	driver := New(Options{Plugin: o, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, driver.installed.add("nftables", installedBackend{Path: "/nowhere/kubelb-backend-nftables"}))
	unpurged := driver.purgeFormer(t.Context())
	require.Contains(t, unpurged["nftables"], "put its binary back")
	all, err := driver.installed.read()
	require.NoError(t, err)
	require.Contains(t, all, "nftables", "the purge is tried again")
}

func TestEachBackendHasADirectoryOfItsOwn(t *testing.T) {
	envoy := Plugin{Path: "/usr/bin/kubelb-backend-envoy", Config: dataplane.Config{StateDir: "/var/lib/kubelb"}}
	require.Equal(t, "/var/lib/kubelb/envoy", envoy.config().StateDir)
	acme := Plugin{Path: "/opt/acme/dataplane", Config: dataplane.Config{StateDir: "/var/lib/kubelb"}}
	require.Equal(t, "/var/lib/kubelb/dataplane", acme.config().StateDir)
}
