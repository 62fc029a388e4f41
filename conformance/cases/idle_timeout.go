package cases

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func idleTimeout() Case {
	return Case{
		Name:      "idle-timeout",
		Shows:     "a connection without packets for its frontend's idle timeout, of one or four seconds, ends at both ends, not earlier and soon after; connections with packets, and those of other frontends, continue",
		Needs:     []dataplane.Feature{dataplane.IdleTimeout},
		Exclusive: true,
		Run: func(c *C) {
			c.Serve(30080)
			pools := []model.Pool{c.Pool("all", 0, 1)}
			short, other, udp := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")
			limit := c.Patience.For(time.Second)
			short.IdleTimeout, udp.IdleTimeout = limit, limit
			longer := c.Frontend(model.TCP, 1, 82, 30080, "all")
			longer.IdleTimeout = 4 * limit
			c.Apply(pools, short, other, udp, longer)
			stream := func(f model.Frontend) *lab.Stream {
				s, err := c.Lab.A.Stream(c.At(1, f.Port), lab.From{})
				c.NoError(err)
				c.Cleanup(func() { s.Close() })
				return s
			}
			begin, idleLonger := time.Now(), stream(longer)
			idle, busy, unlimited, flow := stream(short), stream(short), stream(other), c.openFlows(1)[0]
			for range 16 {
				time.Sleep(limit / 5)
				c.NoError(busy.Alive())
			}
			c.NoError(idle.SetReadDeadline(time.Now().Add(limit)))
			_, err := idle.Read(make([]byte, 1))
			c.True(errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET), "the idle connection is neither closed nor reset: %v", err)
			c.NoError(unlimited.Alive(), "a connection of a frontend without a timeout")
			c.requireEnds(idleLonger, begin, longer.IdleTimeout)
			_, err = lab.RequestAddresses(flow, c.Patience)
			c.NoError(err, "a UDP flow after its idle timeout")
		},
	}
}

// lookInterval is how often a dataplane looks for idle connections at least, and how coarse its clock may be.
const lookInterval = 2 * time.Second

// requireEnds requires that a connection without packets ends after the timeout, not a tenth earlier, and a fifth later at most. begin is when the connection
// began.
func (c *C) requireEnds(s *lab.Stream, begin time.Time, timeout time.Duration) {
	read := func(until time.Duration) error {
		c.NoError(s.SetReadDeadline(begin.Add(until)))
		_, err := s.Read(make([]byte, 1))
		return err
	}
	c.ErrorIs(read(timeout*9/10), os.ErrDeadlineExceeded, "a connection ends before its idle timeout of %s", timeout)
	err := read(timeout*6/5 + c.Patience.For(lookInterval))
	c.True(errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET), "the connection goes on after its idle timeout of %s: %v", timeout, err)
}
