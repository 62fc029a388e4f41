package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// isolated is in the environment of a program that runs in its own namespaces.
const isolated = "KUBELB_ISOLATED=1"

// Isolate executes the program again, with the same arguments, in process and mount namespaces of its own, and does not
// return. In these namespaces it returns at once. When the outer program is killed, the kernel ends all processes inside.
func Isolate() error {
	if slices.Contains(os.Environ(), isolated) {
		return prepare()
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces and runs containers")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// bash is the first process of the namespace, and reaps orphaned processes.
	args := append([]string{unshare, "--pid", "--mount", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private",
		"bash", "-c", `"$@"; exit $?`, "bash", self}, os.Args[1:]...)
	return fmt.Errorf("unshare: %w", syscall.Exec(unshare, args, append(os.Environ(), isolated)))
}

// prepare hides the machine's named network namespaces behind an empty directory. It also sets a logger, because controller-runtime warns if none is set.
// The logger discards everything, because API clients return their errors.
func prepare() error {
	log.SetLogger(logr.Discard())
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("kubelb", "/run/netns", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	return nil
}

// scratchPrefix is the prefix of the names of scratch directories and cgroups.
const scratchPrefix = "kubelb-lab-"

// sweep removes scratch directories and cgroups of former labs. A running lab has a lock on its directory.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), scratchPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			errs = append(errs, os.RemoveAll(dir))
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			errs = append(errs, removeCgroups(filepath.Base(dir)), os.RemoveAll(dir))
		}
		lock.Close()
	}
	return errors.Join(errs...)
}

// removeCgroups removes the lab's cgroups, the innermost ones first. Cgroups that still have processes stay for the next sweep.
func removeCgroups(name string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return err
	}
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if err != nil {
			return err
		}
		slices.SortFunc(dirs, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
		for _, dir := range dirs {
			_ = syscall.Rmdir(dir)
		}
	}
	return nil
}

// newScratch makes this lab's directory, and locks it until the process ends.
func newScratch() (string, *os.File, error) {
	dir, err := os.MkdirTemp("", scratchPrefix)
	if err != nil {
		return "", nil, err
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return "", nil, err
	}
	return dir, lock, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
}
