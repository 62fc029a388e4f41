package statefile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/statefile/smalldisk"
)

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func TestAFileIsReplacedAndNothingElseIsLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	path := filepath.Join(dir, "state")
	for _, text := range []string{"one", "two, which is longer", ""} {
		require.NoError(t, Write(path, []byte(text)))
		require.Equal(t, text, content(t, path))
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func TestAFileWithTheSameContentIsNotWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, Write(path, []byte("same")))
	before, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, Write(path, []byte("same")))
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "the file was replaced")
}

func TestAFullDiskLeavesTheFileAsItWas(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		path := filepath.Join(d.Dir, "state")
		before := bytes.Repeat([]byte("before"), 1000)
		require.NoError(t, Write(path, before))
		free := d.Fill(t)
		err := Write(path, bytes.Repeat([]byte("after"), 10000))
		require.ErrorIs(t, err, unix.ENOSPC)
		require.ErrorContains(t, err, path)
		require.Equal(t, string(before), content(t, path))
		require.NoError(t, Write(path, before), "the same content needs no space")
		_, err = os.Stat(path + ".next")
		require.ErrorIs(t, err, os.ErrNotExist, "an incomplete file is removed")
		free()
		require.NoError(t, Write(path, []byte("after")))
		require.Equal(t, "after", content(t, path))
	})
}

func TestAFullDiskNeverTruncatesAFile(t *testing.T) {
	smalldisk.Run(t, func(t *testing.T, d smalldisk.Disk) {
		path := filepath.Join(d.Dir, "state")
		require.NoError(t, Write(path, []byte("0")))
		d.KeepFull(t)
		current := "0"
		for i := range 500 {
			next := fmt.Sprint(i)
			err := Write(path, []byte(next))
			if err == nil {
				current = next
			} else {
				require.True(t, errors.Is(err, unix.ENOSPC), err)
			}
			require.Equal(t, current, content(t, path))
		}
	})
}

func TestADamagedFileIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, Write(path, []byte("{")))
	require.NoError(t, SetAside(path))
	require.Equal(t, "{", content(t, Aside(path)))
	require.NoError(t, Write(path, []byte("{}")))
	require.Equal(t, "{}", content(t, path))
}

func TestAFileThatCannotBeWrittenIsNamedAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	err := Write(filepath.Join(file, "state"), []byte("text"))
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.ErrorContains(t, err, "the state file "+filepath.Join(file, "state")+" was not changed: ")

	taken := filepath.Join(dir, "taken")
	require.NoError(t, os.MkdirAll(filepath.Join(taken, "by a directory"), 0o700))
	require.ErrorContains(t, Write(taken, []byte("text")), "the state file "+taken+" was not changed: rename ")
	require.NoFileExists(t, taken+".next")

	err = SetAside(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "the state file "+filepath.Join(dir, "none")+" is damaged and cannot be set aside: ")
}
