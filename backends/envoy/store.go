package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"kubelb.k8c.io/core/model"
)

// store is what Envoy was given, in a file, so that a new process serves the same before it knows more.
type store struct {
	path      string
	known     bool // something was committed once
	pools     map[model.PoolID]model.Pool
	frontends map[model.FrontendKey]model.Frontend
	// pending are frontends that Envoy was told of in an Apply that ended before Envoy had answered.
	pending map[model.FrontendKey]bool
}

func openStore(path string) (*store, error) {
	s := &store{path: path, pools: map[model.PoolID]model.Pool{}, frontends: map[model.FrontendKey]model.Frontend{}, pending: map[model.FrontendKey]bool{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	var held content
	if err := json.Unmarshal(text, &held); err != nil {
		return nil, fmt.Errorf("%s, which says what Envoy serves, cannot be read; remove it, and all is sent anew: %w", path, err)
	}
	s.known = true
	for _, p := range held.Pools {
		s.pools[p.ID] = p
	}
	for _, f := range held.Frontends {
		f.Record.AffinityTimeout, f.Record.IdleTimeout = f.Affinity, f.Idle
		s.frontends[f.Record.FrontendKey] = f.Record
	}
	return s, nil
}

// content is what the file holds.
type content struct {
	Pools     []model.Pool     `json:"pools"`
	Frontends []storedFrontend `json:"frontends"`
}

// storedFrontend adds what the model's own JSON, which is for people, writes in another form: durations, in nanoseconds.
type storedFrontend struct {
	Record   model.Frontend `json:"record"`
	Affinity time.Duration  `json:"affinity,omitempty"`
	Idle     time.Duration  `json:"idle,omitempty"`
}

func (s *store) snapshot() model.Snapshot {
	return model.Snapshot{Pools: slices.Collect(maps.Values(s.pools)), Frontends: slices.Collect(maps.Values(s.frontends))}.Canonical()
}

// empty reports whether nobody serves the frontend.
func (s *store) empty(f model.Frontend) bool { return len(s.pools[f.Pool].Endpoints) == 0 }

// users are the frontends of the pool.
func (s *store) users(pool model.PoolID) []model.FrontendKey {
	var out []model.FrontendKey
	for key, f := range s.frontends {
		if f.Pool == pool {
			out = append(out, key)
		}
	}
	return out
}

// save writes the file; a reader sees the old content or the new.
func (s *store) save() error {
	held := content{Pools: slices.Collect(maps.Values(s.pools))}
	for _, f := range s.frontends {
		held.Frontends = append(held.Frontends, storedFrontend{f, f.AffinityTimeout, f.IdleTimeout})
	}
	text, err := json.Marshal(held)
	if err != nil {
		return err
	}
	next := s.path + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return fmt.Errorf("keep what Envoy serves: %w", err)
	}
	s.known = true
	return errors.Join(os.Rename(next, s.path), syncDir(filepath.Dir(s.path)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
