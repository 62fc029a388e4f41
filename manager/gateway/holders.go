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
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
)

// holder is a backend that may hold something in this host's dataplane, with all that it takes to start it again.
type holder struct {
	Path     string            `json:"path"`
	Checksum string            `json:"checksum,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

// holders is a file that says which backends hold something on this host, by name. One is noted before it is told anything
// and struck out when it has been purged, so that a change of --backend leaves nothing behind, whatever is killed
// in between.
type holders string

func (h holders) read() (map[string]holder, error) {
	out := map[string]holder{}
	text, err := os.ReadFile(string(h))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("read which backends hold something here: %w", err)
	}
	return out, nil
}

// note writes the backend down.
func (h holders) note(name string, b holder) error {
	return h.edit(func(all map[string]holder) { all[name] = b })
}

// during notes the backend while it is configured, and after that if it went well. Where it does not, what was noted before
// stays: the backend could be started that way.
func (h holders) during(name string, b holder, configure func() error) error {
	all, err := h.read()
	if err != nil {
		return err
	}
	_, known := all[name]
	if !known {
		if err := h.note(name, b); err != nil {
			return err
		}
	}
	if err := configure(); err != nil {
		if !known {
			err = errors.Join(err, h.strike(name))
		}
		return err
	}
	return h.note(name, b)
}

// strike removes the backend.
func (h holders) strike(name string) error {
	return h.edit(func(all map[string]holder) { delete(all, name) })
}

func (h holders) edit(change func(map[string]holder)) error {
	all, err := h.read()
	if err != nil {
		return err
	}
	change(all)
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	next := string(h) + ".next"
	if err := errors.Join(os.MkdirAll(filepath.Dir(next), 0o700), os.WriteFile(next, text, 0o600)); err != nil {
		return fmt.Errorf("note which backends hold something here: %w", err)
	}
	return os.Rename(next, string(h))
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
	all, err := backend.holders().read()
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
				name, err, backend.holders())
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
	return g.options.Backend.holders().strike(name)
}

// name is the backend's.
func (o BackendOptions) name() string { return backendName(o.Path) }

// stateDir is the backend's own part of the gateway's directory.
func (o BackendOptions) stateDir() string { return filepath.Join(o.Config.StateDir, o.name()) }

func (o BackendOptions) socketDir() string { return filepath.Join(o.stateDir(), "run") }
func (o BackendOptions) holders() holders {
	return holders(filepath.Join(o.Config.StateDir, "backends.json"))
}

// config is what the backend is told.
func (o BackendOptions) config() dataplane.Config {
	c := o.Config
	c.StateDir = o.stateDir()
	return c
}
