package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/statefile"
)

// installedBackend is a backend that may have state on this host, with what is needed to start it again.
type installedBackend struct {
	Path     string            `json:"path"`
	Checksum string            `json:"checksum,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

// installedBackends is a file with the backends that may have state on this host, by name. A backend is added before it is sent anything, and removed
// after a purge. So a change of --backend leaves nothing behind, whatever crashes in between.
//
// If the file cannot be read or written, the dataplane works all the same: checks report it, and what to do.
type installedBackends struct {
	path string

	mu sync.Mutex // guards the file and all below
	// writeErr is why the file could not be written. damagedKept: a damaged file was set aside.
	writeErr    error
	damagedKept bool
}

// installedFile is the name of the file in the gateway's directory.
const installedFile = "backends.json"

func newInstalledBackends(path string) *installedBackends { return &installedBackends{path: path} }

// errDamaged says that the file exists and is invalid.
var errDamaged = errors.New("the file is damaged")

func (i *installedBackends) read() (map[string]installedBackend, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.readLocked()
}

// readLocked reads the file. The caller holds mu.
func (i *installedBackends) readLocked() (map[string]installedBackend, error) {
	out := map[string]installedBackend{}
	text, err := os.ReadFile(i.path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		if err = json.Unmarshal(text, &out); err != nil {
			err = fmt.Errorf("%w: %w", errDamaged, err)
		} else if out == nil {
			err = fmt.Errorf("%w: its content is null", errDamaged)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of backends with state on this host, %s: %w", i.path, err)
	}
	return out, nil
}

// add adds or replaces a backend.
func (i *installedBackends) add(name string, b installedBackend) error {
	return i.edit(func(all map[string]installedBackend) { all[name] = b })
}

// configure calls configure, with the backend in the file. After a failure it restores the former entry, with which the backend could be started. It
// calls configure even if the file cannot be written: packets come first.
func (i *installedBackends) configure(name string, b installedBackend, call func() error) error {
	i.setAsideDamaged()
	all, err := i.read()
	_, known := all[name]
	if err == nil && !known {
		err = i.add(name, b)
	}
	if failure := call(); failure != nil {
		if err == nil && !known {
			err = i.remove(name)
		}
		i.setWriteErr(err)
		return failure
	}
	i.setWriteErr(i.add(name, b))
	return nil
}

// retry adds the configured backend if that failed before, and sets a damaged file aside.
func (i *installedBackends) retry(name string, b installedBackend) {
	i.mu.Lock()
	pending := i.writeErr != nil
	i.mu.Unlock()
	if pending {
		i.setWriteErr(i.add(name, b))
	}
	i.setAsideDamaged()
}

func (i *installedBackends) setWriteErr(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.writeErr = err
}

// setAsideDamaged renames a damaged file.
func (i *installedBackends) setAsideDamaged() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, err := i.readLocked(); errors.Is(err, errDamaged) {
		i.writeErr = statefile.SetAside(i.path)
	}
	_, err := os.Lstat(statefile.Aside(i.path))
	i.damagedKept = err == nil
}

// checks returns the problems of the file.
func (i *installedBackends) checks() (checks []dataplane.Check) {
	i.mu.Lock()
	defer i.mu.Unlock()
	const costs = "the purge of this dataplane after a change of --backend"
	if i.writeErr != nil {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupStorage, Subject: "file " + i.path, State: dataplane.CheckMissing, Costs: costs,
			Found: i.writeErr.Error(), Advice: "free space on its file system, and let this process write there"})
	}
	if i.damagedKept {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupStorage, Subject: "file " + i.path, State: dataplane.CheckMissing,
			Costs:  "the purge of a former --backend, if there was one",
			Found:  "was damaged, and is saved as " + statefile.Aside(i.path),
			Advice: "if this gateway had another --backend before, start it with that one once, then with this one; then delete " + statefile.Aside(i.path)})
	}
	return checks
}

// remove removes a backend.
func (i *installedBackends) remove(name string) error {
	return i.edit(func(all map[string]installedBackend) { delete(all, name) })
}

func (i *installedBackends) edit(change func(map[string]installedBackend)) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	all, err := i.readLocked()
	if err != nil {
		return err
	}
	change(all)
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := statefile.Write(i.path, text); err != nil {
		return fmt.Errorf("write the list of backends with state on this host: %w", err)
	}
	return nil
}
