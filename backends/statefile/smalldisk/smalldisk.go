// Package smalldisk lets a test fill a small file system to its last byte. No other process sees this file system.
package smalldisk

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// size is the size of the file system.
const size = "256k"

// inside is the environment variable of a test that runs in its own mount namespace.
const inside = "KUBELB_SMALL_DISK"

// Disk is a small file system.
type Disk struct{ Dir string }

// Run runs the test in a process with a small file system. It needs no root if the kernel allows user namespaces.
func Run(t *testing.T, test func(t *testing.T, d Disk)) {
	t.Helper()
	if os.Getenv(inside) != "" {
		// Not t.TempDir, whose path is long: the path of a socket in it has 107 bytes at most.
		dir, err := os.MkdirTemp("", "disk-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(dir)
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Fatalf("mount a small file system: %v", err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		test(t, Disk{dir})
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// Fill fills the disk, and returns a function that frees it again.
func (d Disk) Fill(t *testing.T) (free func()) {
	t.Helper()
	path := filepath.Join(d.Dir, "filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	fill(f)
	return func() {
		if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
			t.Fatal(err)
		}
	}
}

// KeepFull fills the disk, and fills whatever becomes free until the test ends, as a program does that logs all the time.
func (d Disk) KeepFull(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(d.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	fill(f)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				fill(f)
				time.Sleep(20 * time.Microsecond)
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-ended
		_ = f.Close()
	})
}

// fill appends until there is no space for another byte.
func fill(f *os.File) {
	for _, n := range []int{4096, 1} {
		for block := make([]byte, n); ; {
			if _, err := f.Write(block); err != nil {
				break
			}
		}
	}
}
