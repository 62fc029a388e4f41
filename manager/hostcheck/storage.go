package hostcheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
)

// roomNeeded is how many bytes a gateway's state directory may come to need: most of it a dataplane's that serves thousands of Services.
const roomNeeded = 16 << 20

// noStart is what a state directory costs in which nothing can be made: the socket and the lock of the dataplane's process lie there.
const noStart = ": the dataplane's process does not start"

// storageCheck tells whether what is to outlive a process can be written. Without room for more, a gateway and its dataplane work.
func storageCheck(dir string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupStorage, Subject: "directory " + dir, State: dataplane.CheckOK, Found: "can be written",
		Costs: "what has to outlive a restart: a start while the management cluster is away, and another --backend"}
	there, err := nearest(dir)
	if err != nil {
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
		return c
	}
	fileSystem := "its file system"
	if there != filepath.Clean(dir) {
		c.Found, fileSystem = "is not there yet, and is made in "+there, "the file system of "+there
	}
	if found, advice := refusal(there, fileSystem); found != "" {
		c.State, c.Costs, c.Found, c.Advice = dataplane.CheckMissing, "", found+noStart, advice+" by --state-dir"
		return c
	}
	switch found, advice, err := fullness(there, fileSystem); {
	case err != nil:
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
	case found != "":
		c.State, c.Found, c.Advice = dataplane.CheckMissing, found, advice+", or name another directory by --state-dir"
	}
	return c
}

// refusal is why nothing can be made at a place, empty if something can.
func refusal(place, fileSystem string) (found, advice string) {
	if is, err := os.Stat(place); err != nil || !is.IsDir() {
		return place + " is no directory", "name a directory"
	}
	switch err := unix.Faccessat(unix.AT_FDCWD, place, unix.W_OK|unix.X_OK, unix.AT_EACCESS); {
	case errors.Is(err, unix.EROFS):
		return fileSystem + " is read-only", "mount it to be written, or name another directory"
	case err != nil:
		return "this process may not write in " + place, "run it as root, or name another directory"
	}
	return "", ""
}

// fullness is why little can be written at a place, empty if enough can.
func fullness(place, fileSystem string) (found, advice string, err error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(place, &disk); err != nil {
		return "", "", fmt.Errorf("room on %s: %w", fileSystem, err)
	}
	// In whole MiB the text stays the same for a while.
	free := disk.Bavail * uint64(disk.Bsize) >> 20
	switch {
	case free < roomNeeded>>20:
		return fmt.Sprintf("%s has less than %d MiB left", fileSystem, roomNeeded>>20), "make room there", nil
	case disk.Files > 0 && disk.Ffree == 0:
		return fileSystem + " takes no more files (inodes)", "delete files there", nil
	}
	return "", "", nil
}

// nearest is the path itself if something is there, and otherwise its nearest parent where something is: what is missing is made in that.
func nearest(path string) (string, error) {
	for path = filepath.Clean(path); ; path = filepath.Dir(path) {
		// A link that leads nowhere is there, too: no directory can be made in its place.
		_, err := os.Lstat(path)
		switch {
		case err == nil:
			return path, nil
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR), path == filepath.Dir(path):
			return "", err
		}
	}
}
