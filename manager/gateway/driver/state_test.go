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

// onDisk is a driver whose host lacks nothing, with this state directory.
func onDisk(t *testing.T, dir string) *onHost {
	t.Helper()
	h := newWithPlugin(t)
	h.Has(drivertest.Module, drivertest.Sysctl)
	h.options.Backend.Config.StateDir, h.runner.backend.Config.StateDir, h.installed.path = dir, dir, filepath.Join(dir, installedFile)
	return h
}

func TestAGatewayWithAFullDiskStartsAndServes(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		first := onDisk(t, d.Dir)
		first.works().requireWorking()
		before, err := first.installed.read()
		require.NoError(t, err)
		first.Driver.Stop()

		d.KeepFull(t)
		for range 5 {
			again := onDisk(t, d.Dir)
			again.options.Backend.Config.Options, again.runner.backend.Config.Options = first.options.Backend.Config.Options, first.options.Backend.Config.Options
			again.works().requireWorking()
			require.Empty(t, again.lacks(dataplane.GroupStorage), "what is noted already needs no room")
			again.Driver.Stop()
		}

		other := onDisk(t, d.Dir) // its options are others
		other.works().requireWorking()
		require.Contains(t, other.lacks(dataplane.GroupStorage), "backends.json")
		require.Contains(t, other.lacks(dataplane.GroupStorage), "no space left on device")
		after, err := other.installed.read()
		require.NoError(t, err)
		require.Equal(t, before, after)
	})
}

func TestWhatCouldNotBeNotedIsNotedWhenThereIsRoom(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		free := d.Fill(t)
		h := onDisk(t, d.Dir)
		require.NotEmpty(t, h.works().lacks(dataplane.GroupStorage))
		free()
		h.SettleInstalled()
		require.Empty(t, h.works().lacks(dataplane.GroupStorage))
		all, err := h.installed.read()
		require.NoError(t, err)
		require.Contains(t, all, h.options.Backend.Name())
	})
}

func TestADamagedListOfBackendsIsMadeAnewAndNamed(t *testing.T) {
	for name, text := range map[string]string{"cut": "{\n  \"nft", "empty": "", "of another kind": "[]"} {
		t.Run(name, func(t *testing.T) {
			h := newWithPlugin(t)
			h.Has(drivertest.Module, drivertest.Sysctl)
			file := filepath.Join(h.options.Backend.Config.StateDir, "backends.json")
			require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			for range 2 { // another process says so, too
				h.works().requireWorking()
				require.Contains(t, h.lacks(dataplane.GroupStorage), file+".damaged")
				h.Driver.Stop()
			}
			all, err := h.installed.read()
			require.NoError(t, err)
			require.Contains(t, all, h.options.Backend.Name())
			require.NoError(t, os.Remove(file+".damaged"))
			h.Driver.Stop()
			require.Empty(t, h.works().lacks(dataplane.GroupStorage))
		})
	}
}
