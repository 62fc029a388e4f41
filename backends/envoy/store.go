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

// store is what Envoy was given, kept in a file so that a new process serves the same before it knows more. The file is a
// journal: a line for each commit, with what that one changed. It survives the process; after a crash of the whole host
// no Envoy runs that could lose anything, and the manager sends what is missing. Where it cannot be kept Envoy is served all the same: a
// new process then begins with what was right before, until the manager has told it what differs.
type store struct {
	path      string
	known     bool // something was committed once
	pools     map[model.PoolID]model.Pool
	frontends map[model.FrontendKey]model.Frontend
	usersOf   map[model.PoolID]map[model.FrontendKey]bool
	// pending are frontends that Envoy was told of in an Apply that ended before Envoy had answered.
	pending map[model.FrontendKey]bool

	changed commit
	journal *os.File
	// unkept is why the file is not what Envoy was given, retryAt when that is tried again; unread is why it was made anew.
	unkept, unread error
	retryAt        time.Time
	// invalid is what was in the file and was not taken.
	invalid []error
	// written is the journal's length, compacted what it was when it held nothing superfluous.
	written, compacted int64
}

// commit is a line of the journal.
type commit struct {
	Pools         []model.Pool        `json:"pools,omitempty"`
	Frontends     []storedFrontend    `json:"frontends,omitempty"`
	GonePools     []model.PoolID      `json:"gonePools,omitempty"`
	GoneFrontends []model.FrontendKey `json:"goneFrontends,omitempty"`
}

// storedFrontend adds what the model's own JSON, which is for people, writes in another form: durations, in nanoseconds.
type storedFrontend struct {
	Record   model.Frontend `json:"record"`
	Affinity time.Duration  `json:"affinity,omitempty"`
	Idle     time.Duration  `json:"idle,omitempty"`
}

func newStore(path string) *store {
	return &store{path: path, pools: map[model.PoolID]model.Pool{}, frontends: map[model.FrontendKey]model.Frontend{}, pending: map[model.FrontendKey]bool{},
		usersOf: map[model.PoolID]map[model.FrontendKey]bool{}}
}

func openStore(path string) (*store, error) {
	s := newStore(path)
	if err := s.read(); err != nil {
		if failed := statefile.SetAside(path); failed != nil {
			return nil, errors.Join(fmt.Errorf("read what Envoy serves: %w", err), failed)
		}
		s.unread = err
	}
	if s.known {
		s.keep(s.compact)
	}
	return s, nil
}

// note is for the operator: what is wrong with the file. It is empty where nothing is.
func (s *store) note() string {
	switch {
	case s.unkept != nil:
		return fmt.Sprintf("state not kept: %v; a restart of this plugin begins with what was kept last: make room on that file system", s.unkept)
	case s.unread != nil:
		return fmt.Sprintf("state made anew: what was there could not be read (%v) and is kept as %s", s.unread, statefile.Aside(s.path))
	case len(s.invalid) > 0:
		return fmt.Sprintf("state damaged: %d records of it were not taken, and the manager is asked for them: %v", len(s.invalid), s.invalid[0])
	}
	return ""
}

// retryKeep is how long it is not tried again to keep what could not be kept: all of it is written then.
const retryKeep = 5 * time.Second

// keep has the file be written. If that fails the next commit writes all of it.
func (s *store) keep(write func() error) {
	s.unkept = write()
	if s.unkept != nil {
		s.unkept = errors.Join(s.unkept, s.close())
		s.retryAt, s.changed, s.known = time.Now().Add(retryKeep), commit{}, true
	}
}

// read takes over what the file has.
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
	s.sift()
	return nil
}

// sift leaves out what a file says that was damaged, or is of another version: Envoy would refuse it, and others with it. A frontend
// without its pool is refused to clients, until the manager has sent that.
func (s *store) sift() {
	for id, p := range s.pools {
		if err := p.Validate(); err != nil {
			delete(s.pools, id)
			s.invalid = append(s.invalid, err)
		}
	}
	for key, f := range s.frontends {
		if err := description().CheckFrontend(f); err != nil {
			s.take(key)
			s.invalid = append(s.invalid, err)
		}
	}
}

// readFrom takes over every commit of a journal up to the first one that is not whole, which a killed process leaves.
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
		s.known = true
		s.replay(c)
	}
}

func (s *store) replay(c commit) {
	for _, p := range c.Pools {
		s.pools[p.ID] = p
	}
	for _, f := range c.Frontends {
		f.Record.AffinityTimeout, f.Record.IdleTimeout = f.Affinity, f.Idle
		s.put(f.Record)
	}
	for _, key := range c.GoneFrontends {
		s.take(key)
	}
	for _, id := range c.GonePools {
		delete(s.pools, id)
	}
}

func (s *store) setPool(p model.Pool) {
	s.pools[p.ID] = p
	s.changed.Pools = append(s.changed.Pools, p)
}

func (s *store) setFrontend(f model.Frontend) {
	s.put(f)
	s.changed.Frontends = append(s.changed.Frontends, stored(f))
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
		s.take(key)
		s.changed.GoneFrontends = append(s.changed.GoneFrontends, key)
	}
	return ok
}

// put and take keep the index of who uses which pool.
func (s *store) put(f model.Frontend) {
	s.take(f.FrontendKey)
	s.frontends[f.FrontendKey] = f
	if s.usersOf[f.Pool] == nil {
		s.usersOf[f.Pool] = map[model.FrontendKey]bool{}
	}
	s.usersOf[f.Pool][f.FrontendKey] = true
}

func (s *store) take(key model.FrontendKey) {
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
	return storedFrontend{f, f.AffinityTimeout, f.IdleTimeout}
}

// slack is how much longer the journal may be than what it has to hold.
const slack = 1 << 20

// commit writes down what has changed since the last one.
func (s *store) commit() {
	switch {
	case s.unkept != nil && time.Now().Before(s.retryAt):
		s.changed = commit{}
	case s.journal == nil || s.written > 2*s.compacted+slack:
		s.keep(s.compact)
	default:
		s.keep(s.append)
	}
}

// append adds a line. A part of a line hides all that follow: if it fails nothing may follow.
func (s *store) append() error {
	line, err := json.Marshal(s.changed)
	if err != nil {
		return err
	}
	n, err := s.journal.Write(append(line, '\n'))
	s.written += int64(n)
	if err != nil {
		return fmt.Errorf("keep what Envoy serves: %w", err)
	}
	s.changed, s.known = commit{}, true
	return nil
}

// compact writes the journal anew, with one line for everything; a reader sees the old one or the new.
func (s *store) compact() error {
	if err := s.close(); err != nil {
		return err
	}
	line, err := json.Marshal(s.all())
	if err != nil {
		return err
	}
	if err := statefile.Write(s.path, append(line, '\n')); err != nil {
		return fmt.Errorf("keep what Envoy serves: %w", err)
	}
	s.journal, err = os.OpenFile(s.path, os.O_APPEND|os.O_WRONLY, 0o600)
	s.written = int64(len(line)) + 1
	s.compacted, s.changed, s.known = s.written, commit{}, true
	return err
}

// all is everything in one commit.
func (s *store) all() commit {
	all := commit{Pools: slices.Collect(maps.Values(s.pools))}
	for _, f := range s.frontends {
		all.Frontends = append(all.Frontends, stored(f))
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

// empty reports whether nobody serves the frontend.
func (s *store) empty(f model.Frontend) bool { return len(s.pools[f.Pool].Endpoints) == 0 }

// guarded is the frontend as the guard is to know it.
func (s *store) guarded(f model.Frontend, served bool) guarded {
	g := guarded{Frontend: f, served: served}
	if served && f.Protocol == model.UDP {
		for _, e := range s.pools[f.Pool].Endpoints {
			g.endpoints = append(g.endpoints, netip.AddrPortFrom(e.Address, f.TargetPort))
		}
	}
	return g
}
