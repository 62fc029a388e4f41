package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/backends/statefile"
)

// holder is a backend that may hold something in this host's dataplane, with all that it takes to start it again.
type holder struct {
	Path     string            `json:"path"`
	Checksum string            `json:"checksum,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

// holders are the backends that hold something on this host, by name, in a file. One is noted before it is told anything and struck out when
// it has been purged, so that a change of --backend leaves nothing behind, whatever is killed in between.
//
// What cannot be read or written keeps no dataplane from its work: checks say so, and what to do.
type holders struct {
	path string

	mu sync.Mutex // guards the file and all below
	// unnoted is why the file does not say what it should; aside is that a file is there that could not be read.
	unnoted error
	aside   bool
}

// holdersFile is the name of the file, in the gateway's directory.
const holdersFile = "backends.json"

func newHolders(path string) *holders { return &holders{path: path} }

// errDamaged is that of a file that is there and makes no sense.
var errDamaged = errors.New("the file is damaged")

func (h *holders) read() (map[string]holder, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all()
}

// all reads the file; mu is held.
func (h *holders) all() (map[string]holder, error) {
	out := map[string]holder{}
	text, err := os.ReadFile(h.path)
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
		return nil, fmt.Errorf("read which backends hold something here, in %s: %w", h.path, err)
	}
	return out, nil
}

// note writes the backend down.
func (h *holders) note(name string, b holder) error {
	return h.edit(func(all map[string]holder) { all[name] = b })
}

// during notes the backend while it is configured, and after that if it went well. Where it does not, what was noted before
// stays: the backend could be started that way. It is configured whether it can be noted or not: packets come first.
func (h *holders) during(name string, b holder, configure func() error) error {
	h.mend()
	all, err := h.read()
	_, known := all[name]
	if err == nil && !known {
		err = h.note(name, b)
	}
	if failed := configure(); failed != nil {
		if err == nil && !known {
			err = h.strike(name)
		}
		h.remember(err)
		return failed
	}
	h.remember(h.note(name, b))
	return nil
}

// settle notes the backend, which is configured, if that could not be done before, and looks whether a damaged file is still there.
func (h *holders) settle(name string, b holder) {
	h.mu.Lock()
	owed := h.unnoted != nil
	h.mu.Unlock()
	if owed {
		h.remember(h.note(name, b))
	}
	h.mend()
}

func (h *holders) remember(unnoted error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unnoted = unnoted
}

// mend gives a damaged file another name.
func (h *holders) mend() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.all(); errors.Is(err, errDamaged) {
		h.unnoted = statefile.SetAside(h.path)
	}
	_, err := os.Lstat(statefile.Aside(h.path))
	h.aside = err == nil
}

// checks say what is wrong with the file.
func (h *holders) checks() (checks []dataplane.Check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	const costs = "the removal of what this dataplane holds, once there is another --backend"
	if h.unnoted != nil {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupStorage, Subject: "file " + h.path, State: dataplane.CheckMissing, Costs: costs,
			Found: h.unnoted.Error(), Advice: "make room on its file system, and have this process write there"})
	}
	if h.aside {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupStorage, Subject: "file " + h.path, State: dataplane.CheckMissing,
			Costs:  "the removal of what a former --backend holds, if there was one",
			Found:  "was damaged, and is kept as " + statefile.Aside(h.path),
			Advice: "if this gateway had another --backend, run it with that one once, then with this one; then delete " + statefile.Aside(h.path)})
	}
	return checks
}

// strike removes the backend.
func (h *holders) strike(name string) error {
	return h.edit(func(all map[string]holder) { delete(all, name) })
}

func (h *holders) edit(change func(map[string]holder)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	all, err := h.all()
	if err != nil {
		return err
	}
	change(all)
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := statefile.Write(h.path, text); err != nil {
		return fmt.Errorf("note which backends hold something here: %w", err)
	}
	return nil
}

// backendName is the name of the backend whose binary this is.
func backendName(path string) string {
	return strings.TrimPrefix(filepath.Base(path), "kubelb-backend-")
}

const (
	// retryPurge is how often it is tried to purge a predecessor that cannot be purged.
	retryPurge = 30 * time.Second
	// purgeLimit bounds one purge; a backend may let connections end meanwhile.
	purgeLimit = time.Minute
)

// purgePredecessors waits until this gateway's backend holds everything, and then purges what others hold. It ends with ctx.
func (g *Gateway) purgePredecessors(ctx context.Context) error {
	select {
	case <-g.inSync:
	case <-ctx.Done():
		return nil
	}
	for {
		leftovers := g.purgeOthers(ctx)
		g.send(ctx, func(g *Gateway) { g.leftovers = leftovers })
		if len(leftovers) == 0 {
			return nil
		}
		select {
		case <-time.After(retryPurge):
		case <-ctx.Done():
			return nil
		}
	}
}

// purgeOthers returns why predecessors could not be purged, by name.
func (g *Gateway) purgeOthers(ctx context.Context) map[string]string {
	backend := g.options.Backend
	all, err := g.holders.read()
	if err != nil {
		return map[string]string{"unknown": err.Error()}
	}
	leftovers := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name == backend.name() {
			continue
		}
		if err := g.purgeOther(ctx, name, all[name]); err != nil {
			g.log.Error("purge the backend that was here before", "backend", name, "error", err)
			leftovers[name] = fmt.Sprintf("the %s backend, which was here before, still holds its part of the dataplane: %v; put its binary back, or remove what it holds and its entry in %s",
				name, err, g.holders.path)
			continue
		}
		g.log.Info("another backend has taken over; the former one is purged", "former", name, "backend", backend.name())
	}
	return leftovers
}

func (g *Gateway) purgeOther(ctx context.Context, name string, h holder) error {
	ctx, cancel := context.WithTimeout(ctx, purgeLimit)
	defer cancel()
	former := g.options.Backend
	former.Path, former.Checksum, former.Config.Options = h.Path, h.Checksum, h.Options
	process, err := plugin.Load(plugin.Options{Path: former.Path, Checksum: former.Checksum, SocketDir: former.socketDir(), Log: &lineLog{log: g.log}})
	if err != nil {
		return err
	}
	defer process.Stop()
	if err := process.Configure(ctx, former.config()); err != nil {
		return err
	}
	if err := process.Close(ctx, true); err != nil {
		return err
	}
	return g.holders.strike(name)
}

// name is the backend's.
func (o BackendOptions) name() string { return backendName(o.Path) }

// stateDir is the backend's own part of the gateway's directory.
func (o BackendOptions) stateDir() string { return filepath.Join(o.Config.StateDir, o.name()) }

func (o BackendOptions) socketDir() string { return filepath.Join(o.stateDir(), "run") }

// holder is what it takes to start the backend again.
func (o BackendOptions) holder() holder { return holder{o.Path, o.Checksum, o.Config.Options} }

// config is what the backend is told.
func (o BackendOptions) config() dataplane.Config {
	c := o.Config
	c.StateDir = o.stateDir()
	return c
}
