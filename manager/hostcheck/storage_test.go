package hostcheck

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/statefile/smalldisk"
)

func TestAFullDiskIsReportedAndDoesNotPreventAStart(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		check := storageCheck(d.Dir)
		require.Equal(t, dataplane.CheckMissing, check.State)
		require.False(t, check.Required())
		require.Contains(t, check.String(), "less than 16 MiB free")
		require.NoError(t, unix.Mount("", d.Dir, "", unix.MS_REMOUNT, "size=32m"))
		require.Equal(t, dataplane.CheckOK, storageCheck(d.Dir).State)
		require.NoError(t, unix.Mount("", d.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		check = storageCheck(d.Dir)
		require.Equal(t, "its file system is read-only: the plugin does not start", check.Found)
		require.True(t, check.Required())
	})
}

func TestAMissingDirectoryIsCheckedByItsParent(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		dir := filepath.Join(d.Dir, "one", "two")
		check := storageCheck(dir)
		require.Equal(t, dataplane.CheckMissing, check.State)
		require.Equal(t, "the file system of "+d.Dir+" has less than 16 MiB free", check.Found)
		require.NoError(t, unix.Mount("", d.Dir, "", unix.MS_REMOUNT, "size=32m"))
		check = storageCheck(dir)
		require.Equal(t, dataplane.CheckOK, check.State)
		require.Equal(t, "does not exist yet, and will be made in "+d.Dir, check.Found)
		require.NoError(t, unix.Mount("", d.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		check = storageCheck(dir)
		require.Equal(t, dataplane.CheckMissing, check.State)
		require.True(t, check.Required(), "the dataplane's process could not make its socket there")
		require.Equal(t, "the file system of "+d.Dir+" is read-only: the plugin does not start", check.Found)
		require.Equal(t, "mount it read-write, or name another directory by --state-dir", check.Fix())
	})
}

func TestAFileIsNotAStateDirectory(t *testing.T) {
	file, link := filepath.Join(t.TempDir(), "file"), filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Symlink("nowhere", link))
	for dir, at := range map[string]string{file: file, filepath.Join(file, "below"): file, link: link} {
		check := storageCheck(dir)
		require.Equal(t, dataplane.CheckMissing, check.State)
		require.True(t, check.Required())
		require.Equal(t, at+" is not a directory: the plugin does not start", check.Found)
		require.Equal(t, "name a directory by --state-dir", check.Fix())
	}
}
