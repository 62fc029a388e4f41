package lab

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Try is a new flow from an address of the host, at a port that the host selects.
type Try struct {
	Network string
	To      netip.AddrPort
	From    netip.Addr
}

// Reply is what became of a try.
type Reply string

// The replies.
const (
	Answered Reply = "answered"
	NoAnswer Reply = "no answer"
)

// maxTries is how many tries run at once. Each has a thread.
const maxTries = 200

// TryAll makes all tries, many at once. A reply that is neither Answered nor NoAnswer is an error. Tries that should be served wait longer for an
// answer, so that a busy machine makes no difference.
func (h *Host) TryAll(tries []Try, served bool) map[Try]Reply {
	wait := h.patience.For(silentAfter)
	if served {
		wait = h.patience.For(lostAfter)
	}
	replies := make([]Reply, len(tries))
	turns := make(chan struct{}, maxTries)
	var all sync.WaitGroup
	for i, try := range tries {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			replies[i] = h.try(try, wait)
		})
	}
	all.Wait()
	out := map[Try]Reply{}
	for i, try := range tries {
		out[try] = replies[i]
	}
	return out
}

func (h *Host) try(t Try, wait time.Duration) Reply {
	err := h.Do(func() error {
		_, err := ask(t.Network, t.To, h.begin(t.Network, From{Address: t.From}), wait)
		return err
	})
	var timeout net.Error
	switch {
	case err == nil:
		return Answered
	case errors.As(err, &timeout) && timeout.Timeout():
		return NoAnswer
	}
	return Reply(err.Error())
}
