package envoy

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"kubelb.k8c.io/backends/statefile"
	"kubelb.k8c.io/core/model"
)

// store has the records that Envoy serves, and writes them to a file, so that a new process serves the same before the manager
// has sent its model. The file is a journal: one line for each commit, with its changes. It need not survive a crash of the host,
// since Envoy does not either, and the manager sends what is missing. If the file cannot be written, Envoy is served nevertheless.
// Then a new process begins with an older state until the manager has sent the difference.
type store struct {
	path      string
	committed bool // there was a commit
	pools     map[model.PoolID]model.Pool
	frontends map[model.FrontendKey]model.Frontend
	usersOf   map[model.PoolID]map[model.FrontendKey]bool
	// former are deleted frontends, which Envoy may still count. counted is how many connections of former frontends Envoy counts for a frontend.
	former  map[model.FrontendKey]bool
	counted map[model.FrontendKey]uint64
	// pending are frontends of an Apply that ended before Envoy had answered, also that of a former process.
	pending map[model.FrontendKey]bool
	// open means that some were pending when the journal was written last.
	open bool

	changed commit
	journal *os.File
	// writeErr is why the file could not be written, nil if it could. retryAt is the time of the next attempt. readErr is why a damaged file was replaced.
	writeErr, readErr error
	retryAt           time.Time
	// invalid are the errors of invalid records in the file.
	invalid []error
	// written is the journal's length, compacted its length after the last compaction.
	written, compacted int64
}

// commit is a line of the journal.
type commit struct {
	Pools         []model.Pool        `json:"pools,omitempty"`
	Frontends     []storedFrontend    `json:"frontends,omitempty"`
	GonePools     []model.PoolID      `json:"gonePools,omitempty"`
	GoneFrontends []model.FrontendKey `json:"goneFrontends,omitempty"`
	// Open means that Envoy may not have these records yet: their frontends, and those of their pools, are pending. Without it Pending are all pending ones.
	Open    bool                `json:"open,omitempty"`
	Pending []model.FrontendKey `json:"pending,omitempty"`
	Former  []model.FrontendKey `json:"former,omitempty"`
}

// storedFrontend adds durations in nanoseconds to the model's JSON, which is for people and has seconds.
type storedFrontend struct {
	Record   model.Frontend `json:"record"`
	Affinity time.Duration  `json:"affinity,omitempty"`
	Idle     time.Duration  `json:"idle,omitempty"`
	Counted  uint64         `json:"counted,omitempty"`
}

func newStore(path string) *store {
	return &store{path: path, pools: map[model.PoolID]model.Pool{}, frontends: map[model.FrontendKey]model.Frontend{}, pending: map[model.FrontendKey]bool{},
		usersOf: map[model.PoolID]map[model.FrontendKey]bool{}, former: map[model.FrontendKey]bool{}, counted: map[model.FrontendKey]uint64{}}
}

func openStore(path string) (*store, error) {
	s := newStore(path)
	if err := s.read(); err != nil {
		if failed := statefile.SetAside(path); failed != nil {
			return nil, errors.Join(fmt.Errorf("read the state file: %w", err), failed)
		}
		s.readErr = err
	}
	if s.committed {
		s.save(s.compact)
	}
	return s, nil
}

// note tells the operator what is wrong with the file. It is empty if nothing is.
func (s *store) note() string {
	switch {
	case s.writeErr != nil:
		return fmt.Sprintf("the state file could not be written: %v; after a restart this plugin begins with the last state that was written: free space on that file system", s.writeErr)
	case s.readErr != nil:
		return fmt.Sprintf("the state file was replaced, since the existing one could not be read (%v); it was renamed to %s", s.readErr, statefile.Aside(s.path))
	case len(s.invalid) > 0:
		return fmt.Sprintf("the state file was damaged: %d of its records are invalid, and the manager sends them again: %v", len(s.invalid), s.invalid[0])
	}
	return ""
}

// writeRetryInterval is the pause after a failed write. The next write has everything.
const writeRetryInterval = 5 * time.Second

// save writes the file. If that fails, a later commit writes everything.
func (s *store) save(write func() error) {
	s.writeErr = write()
	if s.writeErr != nil {
		s.writeErr = errors.Join(s.writeErr, s.close())
		s.retryAt, s.changed, s.committed = time.Now().Add(writeRetryInterval), commit{}, true
	}
}

// read reads the file.
func (s *store) read() error {
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.readFrom(f); err != nil {
		return err
	}
	s.dropInvalid()
	return nil
}

// dropInvalid drops invalid records of a damaged file or of another version: Envoy would refuse them, and other records with them. A frontend without its
// pool is kept, and refuses flows until the manager has sent the pool.
func (s *store) dropInvalid() {
	for id, p := range s.pools {
		if err := p.Validate(); err != nil {
			delete(s.pools, id)
			s.invalid = append(s.invalid, err)
		}
	}
	for key, f := range s.frontends {
		if err := description().CheckFrontend(f); err != nil {
			s.remove(key)
			s.invalid = append(s.invalid, err)
		}
	}
	maps.DeleteFunc(s.pending, func(key model.FrontendKey, _ bool) bool { _, known := s.frontends[key]; return !known })
}

// readFrom reads all commits of a journal up to the first incomplete one, which a killed process leaves.
func (s *store) readFrom(journal io.Reader) error {
	lines := bufio.NewReader(journal)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var c commit
		if err := json.Unmarshal(line, &c); err != nil {
			return nil
		}
		s.committed = true
		s.replay(c)
	}
}

func (s *store) replay(c commit) {
	for _, p := range c.Pools {
		s.pools[p.ID] = p
	}
	for _, f := range c.Frontends {
		f.Record.AffinityTimeout, f.Record.IdleTimeout = f.Affinity, f.Idle
		s.insert(f.Record)
		s.counted[f.Record.FrontendKey] = f.Counted
		delete(s.former, f.Record.FrontendKey)
	}
	for _, key := range c.GoneFrontends {
		s.remove(key)
		delete(s.counted, key)
	}
	for _, key := range slices.Concat(c.GoneFrontends, c.Former) {
		s.former[key] = true
	}
	for _, id := range c.GonePools {
		delete(s.pools, id)
	}
	s.replayPending(c)
}

func (s *store) replayPending(c commit) {
	if !c.Open {
		s.pending = map[model.FrontendKey]bool{}
	}
	for _, key := range c.Pending {
		s.pending[key] = true
	}
	if !c.Open {
		return
	}
	for _, f := range c.Frontends {
		s.pending[f.Record.FrontendKey] = true
	}
	for _, p := range c.Pools {
		maps.Copy(s.pending, s.usersOf[p.ID])
	}
}

func (s *store) setPool(p model.Pool) {
	s.pools[p.ID] = p
	s.changed.Pools = append(s.changed.Pools, p)
}

func (s *store) setFrontend(f model.Frontend) {
	s.insert(f)
	delete(s.former, f.FrontendKey)
	s.changed.Frontends = append(s.changed.Frontends, s.withCounted(f))
}

// deletePool reports whether there was such a pool.
func (s *store) deletePool(id model.PoolID) bool {
	_, ok := s.pools[id]
	if ok {
		delete(s.pools, id)
		s.changed.GonePools = append(s.changed.GonePools, id)
	}
	return ok
}

// deleteFrontend reports whether there was such a frontend.
func (s *store) deleteFrontend(key model.FrontendKey) bool {
	_, ok := s.frontends[key]
	delete(s.pending, key)
	if ok {
		s.remove(key)
		delete(s.counted, key)
		s.former[key] = true
		s.changed.GoneFrontends = append(s.changed.GoneFrontends, key)
	}
	return ok
}

// insert and remove also update the index of the frontends of pools.
func (s *store) insert(f model.Frontend) {
	s.remove(f.FrontendKey)
	s.frontends[f.FrontendKey] = f
	if s.usersOf[f.Pool] == nil {
		s.usersOf[f.Pool] = map[model.FrontendKey]bool{}
	}
	s.usersOf[f.Pool][f.FrontendKey] = true
}

func (s *store) remove(key model.FrontendKey) {
	f, ok := s.frontends[key]
	if !ok {
		return
	}
	delete(s.frontends, key)
	if delete(s.usersOf[f.Pool], key); len(s.usersOf[f.Pool]) == 0 {
		delete(s.usersOf, f.Pool)
	}
}

func stored(f model.Frontend) storedFrontend {
	return storedFrontend{Record: f, Affinity: f.AffinityTimeout, Idle: f.IdleTimeout}
}

func (s *store) withCounted(f model.Frontend) storedFrontend {
	out := stored(f)
	out.Counted = s.counted[f.FrontendKey]
	return out
}

// forgetUncounted forgets deleted frontends for which Envoy has no counter, by statName. Otherwise they would be kept for ever.
func (s *store) forgetUncounted(counters map[string]uint64) {
	maps.DeleteFunc(s.former, func(key model.FrontendKey, _ bool) bool {
		_, counted := counters[statName(key)]
		return !counted
	})
}

// maxOverhead is by how many bytes the journal may exceed twice its compacted length.
const maxOverhead = 1 << 20

// commit writes what has changed since the last commit.
func (s *store) commit() {
	s.open = len(s.pending) > 0
	s.changed.Open = s.open
	s.write()
}

// settle writes that Envoy has everything but the pending frontends. There is nothing to write if none was pending at the last commit.
func (s *store) settle() {
	if !s.open {
		return
	}
	s.open = len(s.pending) > 0
	s.changed.Pending = slices.Collect(maps.Keys(s.pending))
	s.write()
}

func (s *store) write() {
	switch {
	case s.writeErr != nil && time.Now().Before(s.retryAt):
		s.changed = commit{}
	case s.journal == nil || s.written > 2*s.compacted+maxOverhead:
		s.save(s.compact)
	default:
		s.save(s.append)
	}
}

// append adds a line. After an error no line may follow, since an incomplete line would hide all lines after it.
func (s *store) append() error {
	line, err := json.Marshal(s.changed)
	if err != nil {
		return err
	}
	n, err := s.journal.Write(append(line, '\n'))
	s.written += int64(n)
	if err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	s.changed, s.committed = commit{}, true
	return nil
}

// compact replaces the journal by one with a single line. A reader sees the old journal or the new one.
func (s *store) compact() error {
	if err := s.close(); err != nil {
		return err
	}
	line, err := json.Marshal(s.all())
	if err != nil {
		return err
	}
	if err := statefile.Write(s.path, append(line, '\n')); err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	s.journal, err = os.OpenFile(s.path, os.O_APPEND|os.O_WRONLY, 0o600)
	s.written = int64(len(line)) + 1
	s.compacted, s.changed, s.committed = s.written, commit{}, true
	return err
}

// all returns everything in one commit.
func (s *store) all() commit {
	all := commit{Pools: slices.Collect(maps.Values(s.pools)), Pending: slices.Collect(maps.Keys(s.pending)), Former: slices.Collect(maps.Keys(s.former))}
	for _, f := range s.frontends {
		all.Frontends = append(all.Frontends, s.withCounted(f))
	}
	return all
}

func (s *store) close() error {
	if s.journal == nil {
		return nil
	}
	f := s.journal
	s.journal = nil
	return f.Close()
}

func (s *store) snapshot() model.Snapshot {
	return model.Snapshot{Pools: slices.Collect(maps.Values(s.pools)), Frontends: slices.Collect(maps.Values(s.frontends))}.Canonical()
}

// empty reports whether the frontend has no endpoints.
func (s *store) empty(f model.Frontend) bool { return len(s.pools[f.Pool].Endpoints) == 0 }

// rulesOf returns the frontend for the nftables rules.
func (s *store) rulesOf(f model.Frontend, served bool) frontendRules {
	g := frontendRules{Frontend: f, served: served}
	if served && f.Protocol == model.UDP {
		for _, e := range s.pools[f.Pool].Endpoints {
			g.endpoints = append(g.endpoints, netip.AddrPortFrom(e.Address, f.TargetPort))
		}
	}
	return g
}
