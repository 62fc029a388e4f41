package drain

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// Shutdown is the end of a gateway's process. It waits for connections of the dataplane's own processes, where those end with the manager, as in a pod.
// What the kernel forwards goes on. It belongs to the gateway's loop, except for the methods that say otherwise.
type Shutdown struct {
	log *slog.Logger
	// told: the process was told to end. Other goroutines ask.
	told atomic.Bool
	// begun: the gateway gives its addresses to others, and waits. left is how many connections there were at the last look, idle how many looks in a
	// row there was none. done is told when there is nothing to wait for any more.
	begun bool
	left  uint64
	idle  int
	done  chan struct{}
}

const (
	// LookEvery is how often the connections that are left are counted.
	LookEvery = 500 * time.Millisecond
	// idleLooks is how many looks in a row it takes to see none: clients may hear late of who has taken over.
	idleLooks = 3
)

func newShutdown(log *slog.Logger) *Shutdown {
	return &Shutdown{log: log, done: make(chan struct{}, 1)}
}

// Tell notes that the process was told to end. It is safe for concurrent use, and so is Told.
func (s *Shutdown) Tell() { s.told.Store(true) }

// Told tells whether the process was told to end.
func (s *Shutdown) Told() bool { return s.told.Load() }

// Begin has the gateway drain.
func (s *Shutdown) Begin() { s.begun = true }

// Begun tells whether the gateway drains since its process is to end.
func (s *Shutdown) Begun() bool { return s.begun }

// NoteConnections takes over how many connections are left, and whether the gateway still answers for an address.
func (s *Shutdown) NoteConnections(answers bool, left uint64) {
	if !s.begun {
		return
	}
	if s.idle++; answers || left > 0 {
		s.idle = 0
	}
	if left != s.left {
		s.log.Info("waits for connections to end", "left", left)
	}
	s.left = left
}

// Finish ends Wait if there is nothing to wait for: no connection is left, or nobody replaces the gateway.
func (s *Shutdown) Finish(replaced func() bool) {
	if !s.begun || s.idle < idleLooks && replaced() {
		return
	}
	select {
	case s.done <- struct{}{}:
	default:
	}
}

// Wait returns when there is nothing to wait for any more, or ctx ends. It tells which. It is safe for concurrent use.
func (s *Shutdown) Wait(ctx context.Context) (finished bool) {
	select {
	case <-s.done:
		return true
	case <-ctx.Done():
		return false
	}
}
