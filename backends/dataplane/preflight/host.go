// Package preflight checks the kernel of a host: modules, kernel options, sysctls and capabilities. Plugins and the manager share it, so that
// they give the same advice in the same words. It changes nothing itself, but the kernel may load a module that is tried.
package preflight

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Host says where to read. Its zero value is this host, as the calling thread sees it.
type Host struct {
	// Root is the directory with /proc, /sys, /lib and /boot; empty means /.
	Root string
	// Release is the release of the kernel; empty asks the kernel.
	Release string
}

func (h Host) path(elements ...string) string {
	return filepath.Join(append([]string{"/", h.Root}, elements...)...)
}

func (h Host) read(elements ...string) (string, error) {
	text, err := os.ReadFile(h.path(elements...))
	return string(text), err
}

// list returns the names in a directory, none if it cannot be read.
func (h Host) list(elements ...string) (names []string) {
	entries, _ := os.ReadDir(h.path(elements...))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// KernelRelease returns the release of the running kernel, as uname -r does.
func (h Host) KernelRelease() (string, error) {
	if h.Release != "" {
		return h.Release, nil
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}
