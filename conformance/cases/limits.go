package cases

import (
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

// soon is for how long an answer is waited for that is not to come, or may come at another try.
const soon = 300 * time.Millisecond

func limits() Case {
	return Case{
		Name:  "limits",
		Shows: "a frontend has as many connections and UDP flows at once as it may; those that it has go on, others are not concerned, and as some end others come",
		Needs: []dataplane.Feature{dataplane.Limits},
		Run: func(c *C) {
			c.Serve(30080)
			const limit = 5
			pool := []model.Pool{c.Pool("all", 0, 1)}
			tcp, udp, other := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "all")
			tcp.MaxConnections, udp.MaxConnections = limit, limit
			c.Apply(pool, tcp, udp, other)
			streams := c.streams(limit)
			for range 3 {
				c.False(c.Lab.A.AnsweredWithin(c.Patience.For(soon), "tcp", c.At(1, 80)), "one connection more than there may be")
			}
			flows := c.flows(limit)
			c.False(c.Lab.A.AnsweredWithin(c.Patience.For(soon), "udp", c.At(1, 80)), "one UDP flow more than there may be")
			c.open(limit, tcp, udp)
			c.open(0, other)
			c.streamsTo(limit, c.At(1, 81))
			for _, s := range streams {
				c.NoError(s.Alive(), "a connection that was there")
			}
			for _, f := range flows {
				_, err := lab.Who(f, c.Patience)
				c.NoError(err, "a UDP flow that was there")
			}
			for _, s := range streams[:2] {
				c.NoError(s.Reset())
			}
			c.True(c.served(c.Patience.For(5*time.Second)), "two have ended")
			// Each ends before the next one begins, and a dataplane may take a moment to see it.
			for range 4 * limit {
				time.Sleep(c.Patience.For(20 * time.Millisecond))
				c.True(c.served(c.Patience.For(5*time.Second)), "one of many that end")
			}
			c.open(limit-2, tcp)
			tcp.MaxConnections = 2 * limit
			c.Apply(pool, tcp, udp, other)
			c.streams(limit)
			tcp.MaxConnections = 0
			c.Apply(pool, tcp, udp, other)
			c.streams(2 * limit)
			for _, s := range streams[2:] {
				c.NoError(s.Alive(), "a connection that was there")
			}
		},
	}
}

// open requires that the backend says that each of the frontends has so many connections. One that has ended by a reset, which anybody
// can send, may count for some seconds.
func (c *C) open(n uint64, frontends ...model.Frontend) {
	for _, f := range frontends {
		var said uint64
		for begin := time.Now(); time.Since(begin) < c.Patience.For(10*time.Second); time.Sleep(20 * time.Millisecond) {
			stats, err := c.Gateway.Process.Stats(c.ctx)
			c.NoError(err)
			if said = stats.Frontends[f.FrontendKey].Open; said == n {
				break
			}
		}
		c.Equal(n, said, "connections of %s", f.FrontendKey)
	}
}

// served tells whether a new connection comes about within that time.
func (c *C) served(within time.Duration) bool {
	for begin := time.Now(); time.Since(begin) < within; {
		if c.Lab.A.AnsweredWithin(c.Patience.For(soon), "tcp", c.At(1, 80)) {
			return true
		}
	}
	return false
}

func rateLimits() Case {
	return Case{
		Name:  "rate-limits",
		Shows: "a frontend gets as many new connections and UDP flows in a second as it may; those that it has, and others, are not concerned",
		Needs: []dataplane.Feature{dataplane.RateLimits},
		Run: func(c *C) {
			c.Serve(30080)
			const limit, seconds = 20, 3
			pool := []model.Pool{c.Pool("all", 0, 1)}
			tcp, udp, other := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "all")
			tcp.MaxNewPerSecond, udp.MaxNewPerSecond = limit, limit
			c.Apply(pool, tcp, udp, other)
			there := c.streams(1)[0]
			for _, network := range networks {
				time.Sleep(2 * time.Second)
				served := 0
				for end := time.Now().Add(seconds * time.Second); time.Now().Before(end); {
					if c.Lab.A.AnsweredWithin(c.Patience.For(50*time.Millisecond), network, c.At(1, 80)) {
						served++
					}
				}
				// A second that began earlier, and one that has begun, may each have their own.
				c.GreaterOrEqual(served, limit*(seconds-1), "%s", network)
				c.LessOrEqual(served, limit*(seconds+2), "%s", network)
			}
			c.NoError(there.Alive())
			c.Equal(5*limit, total(c.Ask(5*limit, "tcp", c.At(1, 81))))
			tcp.MaxNewPerSecond = 0
			c.Apply(pool, tcp, udp, other)
			c.Equal(5*limit, total(c.Ask(5*limit, "tcp", c.At(1, 80))))
		},
	}
}

func total(counts map[int]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}
