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
		Shows: "a frontend never has more connections and UDP flows than its limit; existing ones continue, other frontends are not affected, and when some end, new ones are taken",
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
		},
	}
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

func rateLimits() Case {
	return Case{
		Name:      "rate-limits",
		Shows:     "a frontend gets no more new connections and UDP flows in a second than its limit; existing ones and other frontends are not affected",
		Needs:     []dataplane.Feature{dataplane.RateLimits},
		Exclusive: true,
		Run: func(c *C) {
			c.Serve(30080)
			const limit, seconds = 20, 3
			pool := []model.Pool{c.Pool("all", 0, 1)}
			tcp, udp, other := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "all")
			tcp.MaxNewPerSecond, udp.MaxNewPerSecond = limit, limit
			c.Apply(pool, tcp, udp, other)
			existing := c.openStreams(1)[0]
			for _, network := range networks {
				time.Sleep(2 * time.Second)
				served := 0
				for end := time.Now().Add(seconds * time.Second); time.Now().Before(end); {
					if c.Lab.A.AnsweredWithin(c.Patience.For(50*time.Millisecond), network, c.At(1, 80)) {
						served++
					}
				}
				// The seconds at the beginning and at the end are partial. Each of them may have as many flows as a whole one.
				c.GreaterOrEqual(served, limit*(seconds-1), "%s", network)
				c.LessOrEqual(served, limit*(seconds+2), "%s", network)
			}
			c.NoError(existing.Alive())
			c.Equal(5*limit, total(c.Request(5*limit, "tcp", c.At(1, 81))))
			tcp.MaxNewPerSecond = 0
			c.Apply(pool, tcp, udp, other)
			c.Equal(5*limit, total(c.Request(5*limit, "tcp", c.At(1, 80))))
		},
	}
}

func total(counts map[int]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}
