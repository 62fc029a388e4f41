package cases

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// shortWait is how long a client waits for an answer that must not come, or that may come at the next try.
const shortWait = 300 * time.Millisecond

func limits() Case {
	return Case{
		Name:  "limits",
		Shows: "a frontend never has more connections and UDP flows than its limit, of 1, 5, 40 or 300; existing ones continue, other frontends are not affected, and when some end, new ones are taken",
		Needs: []dataplane.Feature{dataplane.Limits},
		Run: func(c *C) {
			c.Serve(30080)
			const limit = 5
			pool := []model.Pool{c.Pool("all", 0, 1)}
			tcp, udp, other := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "all")
			tcp.MaxConnections, udp.MaxConnections = limit, limit
			c.Apply(pool, tcp, udp, other)
			streams := c.openStreams(limit)
			for range 3 {
				c.False(c.Lab.A.AnsweredWithin(c.Patience.For(shortWait), "tcp", c.At(1, 80)), "one connection more than the limit")
			}
			flows := c.openFlows(limit)
			c.False(c.Lab.A.AnsweredWithin(c.Patience.For(shortWait), "udp", c.At(1, 80)), "one UDP flow more than the limit")
			c.requireOpen(limit, tcp, udp)
			c.requireOpen(0, other)
			c.openStreamsTo(limit, c.At(1, 81))
			for _, s := range streams {
				c.NoError(s.Alive(), "an existing connection")
			}
			for _, f := range flows {
				_, err := lab.RequestAddresses(f, c.Patience)
				c.NoError(err, "an existing UDP flow")
			}
			for _, s := range streams[:2] {
				c.NoError(s.Reset())
			}
			c.True(c.isServed(c.Patience.For(5*time.Second)), "a new connection after two have ended")
			// Each connection ends before the next one begins. A dataplane may need a moment to see the end.
			for range 4 * limit {
				time.Sleep(c.Patience.For(20 * time.Millisecond))
				c.True(c.isServed(c.Patience.For(5*time.Second)), "one of many short connections")
			}
			c.requireOpen(limit-2, tcp)
			tcp.MaxConnections = 2 * limit
			c.Apply(pool, tcp, udp, other)
			c.openStreams(limit)
			tcp.MaxConnections = 0
			c.Apply(pool, tcp, udp, other)
			c.openStreams(2 * limit)
			for _, s := range streams[2:] {
				c.NoError(s.Alive(), "an existing connection")
			}
			c.requireExactLimits(1, 40, 300)
		},
	}
}

// requireExactLimits requires of each limit that a frontend has that many connections, and another one that many UDP flows, and none more.
func (c *C) requireExactLimits(limits ...int) {
	var frontends []model.Frontend
	for i, limit := range limits {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			f := c.Frontend(protocol, 2, uint16(1000+i), 30080, "all")
			f.MaxConnections = uint32(limit)
			frontends = append(frontends, f)
		}
	}
	c.Apply([]model.Pool{c.Pool("all", 0, 1)}, frontends...)
	for i, limit := range limits {
		to := c.At(2, uint16(1000+i))
		c.openStreamsTo(limit, to)
		for n := range limit {
			flow, err := c.Lab.A.Dial("udp", to, lab.From{})
			c.NoError(err)
			c.Cleanup(func() { flow.Close() })
			_, err = lab.RequestAddresses(flow, c.Patience)
			c.NoError(err, "UDP flow %d of a limit of %d", n+1, limit)
		}
		for _, network := range networks {
			c.False(c.Lab.A.AnsweredWithin(c.Patience.For(shortWait), network, to), "one flow more than the limit of %d over %s", limit, network)
		}
	}
	c.requireOpen(uint64(limits[1]), frontends[2], frontends[3])
}

// requireOpen requires that the backend reports n open connections of each frontend. A backend may count a connection for some
// seconds after its reset, because anybody can send a reset.
func (c *C) requireOpen(n uint64, frontends ...model.Frontend) {
	for _, f := range frontends {
		var reported uint64
		for begin := time.Now(); time.Since(begin) < c.Patience.For(10*time.Second); time.Sleep(20 * time.Millisecond) {
			stats, err := c.Gateway.Process.Stats(c.ctx)
			c.NoError(err)
			if reported = stats.Frontends[f.FrontendKey].Open; reported == n {
				break
			}
		}
		c.Equal(n, reported, "connections of %s", f.FrontendKey)
	}
}

// isServed reports whether a new connection is served within that time.
func (c *C) isServed(within time.Duration) bool {
	for begin := time.Now(); time.Since(begin) < within; {
		if c.Lab.A.AnsweredWithin(c.Patience.For(shortWait), "tcp", c.At(1, 80)) {
			return true
		}
	}
	return false
}
