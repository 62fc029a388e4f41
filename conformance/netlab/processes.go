package netlab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// identity is the device and the inode of a namespace.
type identity struct{ device, inode uint64 }

func identityOf(path string) (identity, error) {
	var at unix.Stat_t
	if err := unix.Stat(path, &at); err != nil {
		return identity{}, err
	}
	return identity{at.Dev, at.Ino}, nil
}

// EndProcesses kills all processes on the hosts of the lab. It may be called while others use the lab.
func (l *Lab) EndProcesses() error {
	l.mu.Lock()
	namespaces := slices.Clone(l.namespaces)
	l.mu.Unlock()
	var paths []string
	for _, ns := range namespaces {
		paths = append(paths, filepath.Join(namespaceDir, ns.Name))
	}
	_, err := endProcessesIn(paths)
	return err
}

// endProcessesIn kills all processes in the namespaces of these paths, and returns their number. A backend may leave
// processes that restart each other, so it repeats until there are none.
func endProcessesIn(paths []string) (int, error) {
	in := map[identity]bool{}
	for _, path := range paths {
		if id, err := identityOf(path); err == nil { // another process may have removed it
			in[id] = true
		}
	}
	var ended []int
	for range 200 {
		running, err := processesIn(in)
		if err != nil {
			return len(ended), err
		}
		if len(running) == 0 {
			for _, pid := range ended {
				_, _ = unix.Wait4(pid, nil, 0, nil) // fails if the process is not a child of this one
			}
			return len(ended), nil
		}
		for _, pid := range running {
			_ = unix.Kill(pid, unix.SIGKILL) // the process may have ended by itself
			if !slices.Contains(ended, pid) {
				ended = append(ended, pid)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return len(ended), fmt.Errorf("%d processes in the namespaces of a lab do not end", len(ended))
}

// Processes returns the numbers of the processes in the namespace, without this process.
func (ns *Namespace) Processes() ([]int, error) {
	id, err := identityOf(filepath.Join(namespaceDir, ns.Name))
	if err != nil {
		return nil, err
	}
	return processesIn(map[identity]bool{id: true})
}

// processesIn returns the processes in these namespaces, without this one.
func processesIn(in map[identity]bool) ([]int, error) {
	if len(in) == 0 {
		return nil, nil
	}
	found, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range found {
		var pid int
		if id, err := identityOf(path); err != nil || !in[id] {
			continue
		}
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
