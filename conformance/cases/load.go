package cases

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"kubelb.k8c.io/conformance/lab"
)

// Load makes new flows from client b, one after another, until Stop.
type Load struct {
	c    *C
	made atomic.Int64
	// resets is the number of established connections that a reset may end while their request is on its way.
	resets int
	first  atomic.Pointer[error]
	stop   chan struct{}
	done   chan struct{}
}

// Load starts a load.
func (c *C) Load(network string, to netip.AddrPort) *Load { return c.loadWithResets(network, to, 0) }

// loadWithResets starts a load. Up to resets of its established connections may end by a reset.
func (c *C) loadWithResets(network string, to netip.AddrPort, resets int) *Load {
	return c.startLoad(&Load{c: c, resets: resets}, func() error { return c.newFlow(network, to) })
}

// startLoad starts a load that makes flows by newFlow.
func (c *C) startLoad(l *Load, newFlow func() error) *Load {
	l.stop, l.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(l.done)
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			if err := newFlow(); l.isFailure(err) {
				l.first.CompareAndSwap(nil, &err)
			}
			l.made.Add(1)
		}
	}()
	c.Cleanup(l.end)
	return l
}

// isFailure reports whether an error counts. The kernel returns ECONNRESET only for a connection that was established (tcp(7)): a SYN that is answered
// by a reset is ECONNREFUSED.
func (l *Load) isFailure(err error) bool {
	if errors.Is(err, syscall.ECONNRESET) && l.resets > 0 {
		l.resets--
		return false
	}
	return err != nil
}

// maxSends is how often a datagram is sent at most. Its endpoint does not leave that often in a row while it is in flight.
const maxSends = 5

// newFlow sends one request. Over UDP it sends the request again on the same flow if there is no answer, because a datagram
// may be lost when its endpoint leaves. Every client of a datagram protocol does that.
func (c *C) newFlow(network string, to netip.AddrPort) error {
	if network == "tcp" {
		_, err := c.Lab.B.Request(network, to, lab.From{})
		return err
	}
	flow, err := c.Lab.B.Dial(network, to, lab.From{})
	if err != nil {
		return err
	}
	defer flow.Close()
	for range maxSends - 1 {
		if !lab.Unanswered(flow, c.Patience) {
			return nil
		}
	}
	_, err = lab.RequestAddresses(flow, c.Patience)
	return err
}

func (l *Load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
}

// failure returns the error of the first flow that failed.
func (l *Load) failure() error {
	if err := l.first.Load(); err != nil {
		return *err
	}
	return nil
}

// Stop ends the load and requires that no flow failed. It returns the number of flows.
func (l *Load) Stop() int {
	l.end()
	<-l.done
	l.c.NoError(l.failure(), "one of %d flows", l.made.Load())
	return int(l.made.Load())
}

// Eventually requires that the condition is true within two seconds.
func (c *C) Eventually(condition func() bool, message string) {
	for begin := time.Now(); time.Since(begin) < c.Patience.For(2*time.Second); time.Sleep(10 * time.Millisecond) {
		if condition() {
			return
		}
	}
	c.Fail(message)
	c.FailNow()
}

func from(port uint16) lab.From { return lab.From{Port: port} }

// endpointOf sends a request on a UDP flow and returns the endpoint that answers.
func (c *C) endpointOf(f flow) int {
	answer, err := lab.RequestAddresses(f, c.Patience)
	c.NoError(err)
	return c.Number(answer.Endpoint)
}
