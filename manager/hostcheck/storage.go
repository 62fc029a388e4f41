package hostcheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
)

// roomNeeded is how many bytes a gateway's state directory may need, most of them for the dataplane's state of thousands of Services.
const roomNeeded = 16 << 20

// noStart is the consequence of a state directory in which no file can be made: the plugin has its socket and its lock there.
const noStart = ": the plugin does not start"

// storageCheck checks that the state directory can be written and has free space. Without free space, a gateway and its dataplane work.
func storageCheck(dir string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupStorage, Subject: "directory " + dir, State: dataplane.CheckOK, Found: "can be written",
		Costs: "state that survives a restart: a start while the management cluster does not answer, and a change of --backend"}
	there, err := nearestExisting(dir)
	if err != nil {
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
		return c
	}
	fileSystem := "its file system"
	if there != filepath.Clean(dir) {
		c.Found, fileSystem = "does not exist yet, and will be made in "+there, "the file system of "+there
	}
	if found, advice := unwritable(there, fileSystem); found != "" {
		c.State, c.Costs, c.Found, c.Advice = dataplane.CheckMissing, "", found+noStart, advice+" by --state-dir"
		return c
	}
	switch found, advice, err := lowSpace(there, fileSystem); {
	case err != nil:
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
	case found != "":
		c.State, c.Found, c.Advice = dataplane.CheckMissing, found, advice+", or name another directory by --state-dir"
	}
	return c
}

// unwritable returns why no file can be made in a directory, empty if one can.
func unwritable(place, fileSystem string) (found, advice string) {
	if is, err := os.Stat(place); err != nil || !is.IsDir() {
		return place + " is not a directory", "name a directory"
	}
	switch err := unix.Faccessat(unix.AT_FDCWD, place, unix.W_OK|unix.X_OK, unix.AT_EACCESS); {
	case errors.Is(err, unix.EROFS):
		return fileSystem + " is read-only", "mount it read-write, or name another directory"
	case err != nil:
		return "this process may not write in " + place, "run it as root, or name another directory"
	}
	return "", ""
}

// lowSpace returns why a directory has too little free space, empty if it has enough.
func lowSpace(place, fileSystem string) (found, advice string, err error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(place, &disk); err != nil {
		return "", "", fmt.Errorf("free space on %s: %w", fileSystem, err)
	}
	// In whole MiB the text changes seldom.
	free := disk.Bavail * uint64(disk.Bsize) >> 20
	switch {
	case free < roomNeeded>>20:
		return fmt.Sprintf("%s has less than %d MiB free", fileSystem, roomNeeded>>20), "free space on it", nil
	case disk.Files > 0 && disk.Ffree == 0:
		return fileSystem + " has no free inodes, so no file can be made", "delete files on it", nil
	}
	return "", "", nil
}

// nearestExisting returns the path itself if it exists, and otherwise its nearest existing parent, in which the missing directories are made.
func nearestExisting(path string) (string, error) {
	for path = filepath.Clean(path); ; path = filepath.Dir(path) {
		// A broken symbolic link exists, too: no directory can be made in its place.
		_, err := os.Lstat(path)
		switch {
		case err == nil:
			return path, nil
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR), path == filepath.Dir(path):
			return "", err
		}
	}
}
