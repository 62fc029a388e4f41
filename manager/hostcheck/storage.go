package hostcheck

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
)

// roomNeeded is how many bytes a gateway's state directory may come to need: most of it a dataplane's that serves thousands of Services.
const roomNeeded = 16 << 20

// storageCheck tells whether what is to outlive a process can be written. A gateway without it works, and its dataplane as well.
func storageCheck(dir string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupStorage, Subject: "directory " + dir, State: dataplane.CheckOK,
		Costs: "what has to outlive a restart: a start while the management cluster is away, and another --backend"}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); errors.Is(err, fs.ErrNotExist) {
		c.Found = "is not there yet, and is made"
		return c
	} else if err != nil {
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
		return c
	}
	// In whole MiB the text stays the same for a while.
	free := disk.Bavail * uint64(disk.Bsize) >> 20
	switch {
	case disk.Flags&unix.ST_RDONLY != 0:
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "its file system is read-only", "mount it to be written, or name another one by --state-dir"
	case free < roomNeeded>>20:
		c.State, c.Found, c.Advice = dataplane.CheckMissing, fmt.Sprintf("its file system has less than %d MiB left", roomNeeded>>20), "make room there, or name another one by --state-dir"
	case disk.Files > 0 && disk.Ffree == 0:
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "its file system takes no more files (inodes)", "delete files there, or name another one by --state-dir"
	default:
		c.Found = "can be written"
	}
	return c
}
