package cases

import (
	"net/netip"
	"sync/atomic"
	"time"

	"kubelb.k8c.io/conformance/lab"
)

// Load makes new flows from client b, one after another, until it is stopped.
type Load struct {
	c    *C
	made atomic.Int64
	stop chan struct{}
	done chan error
}

// Load begins to make flows.
func (c *C) Load(network string, to netip.AddrPort) *Load {
	l := &Load{c: c, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		var first error
		for {
			select {
			case <-l.stop:
				l.done <- first
				return
			default:
			}
			if err := c.newFlow(network, to); err != nil && first == nil {
				first = err
			}
			l.made.Add(1)
		}
	}()
	c.Cleanup(l.end)
	return l
}

// sends is how often a datagram is sent, at most: that often in a row its endpoint leaves while it is on its way in no network.
const sends = 5

// newFlow asks once over TCP. Over UDP it asks again on the same flow when a datagram, or its answer, was lost
// together with the endpoint that had just got it, as any client of a datagram protocol does.
func (c *C) newFlow(network string, to netip.AddrPort) error {
	if network == "tcp" {
		_, err := c.Lab.B.Ask(network, to, lab.From{})
		return err
	}
	flow, err := c.Lab.B.Dial(network, to, lab.From{})
	if err != nil {
		return err
	}
	defer flow.Close()
	for range sends - 1 {
		if !lab.Unanswered(flow, c.Patience) {
			return nil
		}
	}
	_, err = lab.Who(flow, c.Patience)
	return err
}

func (l *Load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
}

// Stop ends the load and requires that no flow failed. It returns how many there were.
func (l *Load) Stop() int {
	l.end()
	err := <-l.done
	l.c.NoError(err, "one of %d flows", l.made.Load())
	return int(l.made.Load())
}

// Eventually requires that the condition comes true within two seconds.
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

// endpointOf asks on a UDP flow which endpoint it meets now.
func (c *C) endpointOf(f flow) int {
	answer, err := lab.Who(f, c.Patience)
	c.NoError(err)
	return c.Number(answer.Endpoint)
}
