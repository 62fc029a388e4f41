package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Leftovers are what Sweep removed.
type Leftovers struct{ Namespaces, Processes, Directories int }

// Empty reports whether there was nothing to remove.
func (l Leftovers) Empty() bool { return l == Leftovers{} }

// String names the numbers.
func (l Leftovers) String() string {
	return fmt.Sprintf("%d namespaces, %d processes in them, %d directories", l.Namespaces, l.Processes, l.Directories)
}

// ownedPrefix is how names begin of what this process makes: prefix-PIDsSTART-. START is the time at which the process began, in ticks
// since the boot, because another process may get the same id later.
func ownedPrefix(prefix string) string {
	start, _ := startOf(os.Getpid()) // it is in /proc, on every host with namespaces
	return fmt.Sprintf("%s-%ds%x-", prefix, os.Getpid(), start)
}

// directoryPrefix is the prefix of the names of all directories of TempDir. It does not tell a dataplane that it is in a lab.
const directoryPrefix = "kubelb"

// TempDir makes a directory for files of this process. Sweep removes it if the process does not.
func TempDir() (string, error) { return os.MkdirTemp("", ownedPrefix(directoryPrefix)) }

// Sweep removes what ended processes left: their namespaces with this prefix, the processes in these, and all directories of TempDir.
// Mounts and pinned objects of a host end with the host's last process. Other processes may sweep at the same time.
func Sweep(prefix string) (Leftovers, error) {
	var left Leftovers
	namespaces, err := abandoned(namespaceDir, prefix)
	if err != nil {
		return left, err
	}
	directories, err := abandoned(os.TempDir(), directoryPrefix)
	if err != nil {
		return left, err
	}
	killed, err := endProcessesIn(namespaces)
	left.Processes = killed
	errs := []error{err}
	for _, path := range namespaces {
		left.Namespaces++
		errs = append(errs, removeNamespace(path))
	}
	for _, path := range directories {
		if !ownDirectory(path) {
			continue
		}
		left.Directories++
		errs = append(errs, os.RemoveAll(path))
	}
	return left, errors.Join(errs...)
}

// abandoned returns the paths in the directory whose names have an owner that has ended.
func abandoned(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if ownerEnded(e.Name(), prefix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// ownerEnded reports whether the process has ended that made what has this name. It also reads names of former versions, which
// have no start: prefix-PID-.
func ownerEnded(name, prefix string) bool {
	rest, mine := strings.CutPrefix(name, prefix+"-")
	if !mine {
		return false
	}
	owner, _, whole := strings.Cut(rest, "-")
	id, start, hasStart := strings.Cut(owner, "s")
	pid, err := strconv.Atoi(id)
	if !whole || err != nil || pid <= 0 {
		return false
	}
	began, runs := startOf(pid)
	if !runs || !hasStart {
		return !runs
	}
	want, err := strconv.ParseUint(start, 16, 64)
	return err == nil && began != want
}

// startOf returns when a process began, in ticks since the boot, and whether it runs.
func startOf(pid int) (uint64, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH)
	}
	// The second field is a name in parentheses, which may contain anything. The start is field 22 (proc_pid_stat(5)).
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0, true
	}
	if fields[0] == "Z" { // it has ended, and nobody has waited for it
		return 0, false
	}
	began, _ := strconv.ParseUint(fields[19], 10, 64)
	return began, true
}

// ownDirectory reports whether the path is a directory of this user. Everybody may write into the directory of temporary files.
func ownDirectory(path string) bool {
	is, err := os.Lstat(path)
	if err != nil || !is.IsDir() {
		return false
	}
	stat, ok := is.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// removeNamespace removes a namespace's file, with or without its mount. Other processes may do that at the same time.
func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
