package cases

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func idleTimeout() Case {
	return Case{
		Name:      "idle-timeout",
		Shows:     "a connection without packets for its frontend's idle timeout ends at both ends; connections with packets, and those of other frontends, continue",
		Needs:     []dataplane.Feature{dataplane.IdleTimeout},
		Exclusive: true,
		Run: func(c *C) {
			c.Serve(30080)
			pools := []model.Pool{c.Pool("all", 0, 1)}
			short, other, udp := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")
			limit := c.Patience.For(time.Second)
			short.IdleTimeout, udp.IdleTimeout = limit, limit
			c.Apply(pools, short, other, udp)
			stream := func(f model.Frontend) *lab.Stream {
				s, err := c.Lab.A.Stream(c.At(1, f.Port), lab.From{})
				c.NoError(err)
				c.Cleanup(func() { s.Close() })
				return s
			}
			idle, busy, unlimited, flow := stream(short), stream(short), stream(other), c.openFlows(1)[0]
			for range 16 {
				time.Sleep(limit / 5)
				c.NoError(busy.Alive())
			}
			c.NoError(idle.SetReadDeadline(time.Now().Add(limit)))
			_, err := idle.Read(make([]byte, 1))
			c.True(errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET), "the idle connection is neither closed nor reset: %v", err)
			c.NoError(unlimited.Alive(), "a connection of a frontend without a timeout")
			_, err = lab.RequestAddresses(flow, c.Patience)
			c.NoError(err, "a UDP flow after its idle timeout")
		},
	}
}
