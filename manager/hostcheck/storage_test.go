package hostcheck

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/statefile/smalldisk"
)

func TestADiskWithoutRoomIsNamedAndStopsNothing(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		check := storageCheck(d.Dir)
		require.Equal(t, dataplane.CheckMissing, check.State)
		require.False(t, check.Required())
		require.Contains(t, check.String(), "less than 16 MiB left")
		require.NoError(t, unix.Mount("", d.Dir, "", unix.MS_REMOUNT, "size=32m"))
		require.Equal(t, dataplane.CheckOK, storageCheck(d.Dir).State)
		require.NoError(t, unix.Mount("", d.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		require.Contains(t, storageCheck(d.Dir).String(), "read-only")
		require.Equal(t, dataplane.CheckOK, storageCheck(filepath.Join(d.Dir, "none")).State, "the gateway makes it")
	})
}
