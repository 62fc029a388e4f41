package driver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/statefile/smalldisk"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

// onDisk returns a driver with this state directory. Its host lacks nothing.
func onDisk(t *testing.T, dir string) *testDriver {
	t.Helper()
	h := newWithPlugin(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	h.options.Plugin.Config.StateDir, h.runner.backend.Config.StateDir, h.installed.path = dir, dir, filepath.Join(dir, installedFile)
	return h
}

func TestAGatewayWithAFullDiskStartsAndServes(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		first := onDisk(t, d.Dir)
		first.retryAndSync().requireWorking()
		before, err := first.installed.read()
		require.NoError(t, err)
		first.Driver.Stop()

		d.KeepFull(t)
		for range 5 {
			again := onDisk(t, d.Dir)
			again.options.Plugin.Config.Options, again.runner.backend.Config.Options = first.options.Plugin.Config.Options, first.options.Plugin.Config.Options
			again.retryAndSync().requireWorking()
			require.Empty(t, again.lacking(dataplane.GroupStorage), "an existing entry needs no space")
			again.Driver.Stop()
		}

		other := onDisk(t, d.Dir) // with other options
		other.retryAndSync().requireWorking()
		require.Contains(t, other.lacking(dataplane.GroupStorage), "backends.json")
		require.Contains(t, other.lacking(dataplane.GroupStorage), "no space left on device")
		after, err := other.installed.read()
		require.NoError(t, err)
		require.Equal(t, before, after)
	})
}

func TestTheListOfBackendsIsWrittenOnceThereIsSpace(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		free := d.Fill(t)
		h := onDisk(t, d.Dir)
		require.NotEmpty(t, h.retryAndSync().lacking(dataplane.GroupStorage))
		free()
		h.RetryInstalled()
		require.Empty(t, h.retryAndSync().lacking(dataplane.GroupStorage))
		all, err := h.installed.read()
		require.NoError(t, err)
		require.Contains(t, all, h.options.Plugin.Name())
	})
}

func TestADamagedListOfBackendsIsReplacedAndReported(t *testing.T) {
	for name, text := range map[string]string{"cut": "{\n  \"nft", "empty": "", "of another kind": "[]"} {
		t.Run(name, func(t *testing.T) {
			h := newWithPlugin(t)
			h.Add(drivertest.Module, drivertest.Sysctl)
			file := filepath.Join(h.options.Plugin.Config.StateDir, "backends.json")
			require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			for range 2 { // a second process reports it, too
				h.retryAndSync().requireWorking()
				require.Contains(t, h.lacking(dataplane.GroupStorage), file+".damaged")
				h.Driver.Stop()
			}
			all, err := h.installed.read()
			require.NoError(t, err)
			require.Contains(t, all, h.options.Plugin.Name())
			require.NoError(t, os.Remove(file+".damaged"))
			h.Driver.Stop()
			require.Empty(t, h.retryAndSync().lacking(dataplane.GroupStorage))
		})
	}
}
