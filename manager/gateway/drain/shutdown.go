package drain

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// Shutdown is the end of a gateway's process. It waits for connections through processes of the dataplane that end with the manager, as in a pod.
// Connections through the kernel go on. A Shutdown belongs to the gateway's loop, except for the methods that say otherwise.
type Shutdown struct {
	log *slog.Logger
	// requested: the process was told to end. Other goroutines read it.
	requested atomic.Bool
	// begun: the gateway drains, and waits. connections is their last count, and idleCounts how many counts in a row were zero. done gets a value
	// when there is nothing to wait for any more.
	begun       bool
	connections uint64
	idleCounts  int
	done        chan struct{}
}

const (
	// CountInterval is how often the remaining connections are counted.
	CountInterval = 500 * time.Millisecond
	// requiredIdleCounts is how many counts of zero in a row end the wait: clients may learn late which gateway has taken over.
	requiredIdleCounts = 3
)

func newShutdown(log *slog.Logger) *Shutdown {
	return &Shutdown{log: log, done: make(chan struct{}, 1)}
}

// Request notes that the process was told to end. It is safe for concurrent use.
func (s *Shutdown) Request() { s.requested.Store(true) }

// Requested reports whether the process was told to end. It is safe for concurrent use.
func (s *Shutdown) Requested() bool { return s.requested.Load() }

// Begin starts the drain.
func (s *Shutdown) Begin() { s.begun = true }

// Begun reports whether the gateway drains because its process is to end.
func (s *Shutdown) Begun() bool { return s.begun }

// NoteConnections takes over the number of remaining connections. answers says whether the gateway still answers for an address.
func (s *Shutdown) NoteConnections(answers bool, connections uint64) {
	if !s.begun {
		return
	}
	if s.idleCounts++; answers || connections > 0 {
		s.idleCounts = 0
	}
	if connections != s.connections {
		s.log.Info("wait for connections to end", "connections", connections)
	}
	s.connections = connections
}

// FinishIfDone ends Wait if there is nothing to wait for: no connection is left, or no peer replaces the gateway.
func (s *Shutdown) FinishIfDone(replaced func() bool) {
	if !s.begun || s.idleCounts < requiredIdleCounts && replaced() {
		return
	}
	select {
	case s.done <- struct{}{}:
	default:
	}
}

// Wait returns when there is nothing to wait for any more, or ctx ends. It returns false in the second case. It is safe for concurrent use.
func (s *Shutdown) Wait(ctx context.Context) (finished bool) {
	select {
	case <-s.done:
		return true
	case <-ctx.Done():
		return false
	}
}
