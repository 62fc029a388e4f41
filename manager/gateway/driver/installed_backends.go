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

// installedBackend is a backend that may hold something on this host, with all that it takes to start it again.
type installedBackend struct {
	Path     string            `json:"path"`
	Checksum string            `json:"checksum,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

// installedBackends are the backends that may hold something on this host, by name, in a file. A backend is noted before it is sent anything, and
// removed when it has been purged, so that a change of --backend leaves nothing behind, whatever is killed in between.
//
// What cannot be read or written keeps no dataplane from its work: checks say so, and what to do.
type installedBackends struct {
	path string

	mu sync.Mutex // guards the file and all below
	// writeErr is why the file could not be written; aside is that a file is there that could not be read.
	writeErr error
	aside    bool
}

// installedFile is the name of the file, in the gateway's directory.
const installedFile = "backends.json"

func newInstalledBackends(path string) *installedBackends { return &installedBackends{path: path} }

// errDamaged is that of a file that is there and makes no sense.
var errDamaged = errors.New("the file is damaged")

func (i *installedBackends) read() (map[string]installedBackend, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.all()
}

// all reads the file; mu is held.
func (i *installedBackends) all() (map[string]installedBackend, error) {
	out := map[string]installedBackend{}
	text, err := os.ReadFile(i.path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		if err = json.Unmarshal(text, &out); err != nil {
			err = fmt.Errorf("%w: %w", errDamaged, err)
		} else if out == nil {
			err = fmt.Errorf("%w: it says null", errDamaged)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read which backends hold something here, in %s: %w", i.path, err)
	}
	return out, nil
}

// note writes the backend down.
func (i *installedBackends) note(name string, b installedBackend) error {
	return i.edit(func(all map[string]installedBackend) { all[name] = b })
}

// recordWhile notes the backend while it is configured, and after that if it went well. Where it does not, what was noted before
// stays: the backend could be started that way. It is configured whether it can be noted or not: packets come first.
func (i *installedBackends) recordWhile(name string, b installedBackend, configure func() error) error {
	i.setAsideDamaged()
	all, err := i.read()
	_, known := all[name]
	if err == nil && !known {
		err = i.note(name, b)
	}
	if failed := configure(); failed != nil {
		if err == nil && !known {
			err = i.remove(name)
		}
		i.remember(err)
		return failed
	}
	i.remember(i.note(name, b))
	return nil
}

// settle notes the backend, which is configured, if that could not be done before, and looks whether a damaged file is still there.
func (i *installedBackends) settle(name string, b installedBackend) {
	i.mu.Lock()
	owed := i.writeErr != nil
	i.mu.Unlock()
	if owed {
		i.remember(i.note(name, b))
	}
	i.setAsideDamaged()
}

func (i *installedBackends) remember(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.writeErr = err
}

// setAsideDamaged gives a damaged file another name.
func (i *installedBackends) setAsideDamaged() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, err := i.all(); errors.Is(err, errDamaged) {
		i.writeErr = statefile.SetAside(i.path)
	}
	_, err := os.Lstat(statefile.Aside(i.path))
	i.aside = err == nil
}

// checks say what is wrong with the file.
func (i *installedBackends) checks() (checks []dataplane.Check) {
	i.mu.Lock()
	defer i.mu.Unlock()
	const costs = "the removal of what this dataplane holds, once there is another --backend"
	if i.writeErr != nil {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupStorage, Subject: "file " + i.path, State: dataplane.CheckMissing, Costs: costs,
			Found: i.writeErr.Error(), Advice: "make room on its file system, and have this process write there"})
	}
	if i.aside {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupStorage, Subject: "file " + i.path, State: dataplane.CheckMissing,
			Costs:  "the removal of what a former --backend holds, if there was one",
			Found:  "was damaged, and is kept as " + statefile.Aside(i.path),
			Advice: "if this gateway had another --backend, run it with that one once, then with this one; then delete " + statefile.Aside(i.path)})
	}
	return checks
}

// remove removes the backend.
func (i *installedBackends) remove(name string) error {
	return i.edit(func(all map[string]installedBackend) { delete(all, name) })
}

func (i *installedBackends) edit(change func(map[string]installedBackend)) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	all, err := i.all()
	if err != nil {
		return err
	}
	change(all)
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := statefile.Write(i.path, text); err != nil {
		return fmt.Errorf("note which backends hold something here: %w", err)
	}
	return nil
}
