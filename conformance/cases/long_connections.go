package cases

import (
	"net"
	"net/netip"
	"time"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func longConnections() Case {
	return Case{
		Name:      "long-connections",
		Shows:     "established connections and UDP flows continue during 1,000 changes of other frontends and pools, which are done within two minutes: none is lost or reset; a dataplane that proxies connections reports how many there are",
		Limit:     5 * time.Minute,
		Exclusive: true,
		Run: func(c *C) {
			c.Serve(30080)
			pool := c.Pool("all", 0, 1, 2, 3)
			used := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply([]model.Pool{pool}, used...)
			streams, flows := c.openStreams(20), c.openFlows(20)
			stats, err := c.Gateway.Process.Stats(c.ctx)
			c.NoError(err)
			c.True(stats.Proxied == 0 || stats.Proxied == uint64(len(streams)), "the backend reports that it proxies %d of %d connections", stats.Proxied, len(streams))
			c.ExpectChanges(manyChanges)
			begin := time.Now()
			for i := range manyChanges {
				other := c.Pool("other", i%4, (i+1)%4)
				frontends := append(used, c.Frontend(model.TCP, 2, uint16(1000+i%7), 30080, "other"), c.Frontend(model.UDP, 3, 53, uint16(30000+i%3), "other"))
				c.Apply([]model.Pool{pool, other}, frontends[:2+i%3]...)
				c.Less(time.Since(begin), c.Patience.For(manyChangesWithin), "%s of %s changes", thousands(i+1), thousands(manyChanges))
				if i%50 == 0 {
					c.requireAlive(streams, flows)
				}
			}
			c.requireAlive(streams, flows)
		},
	}
}

// That is eight changes a second. A slower dataplane falls behind while many tenants roll out.
const (
	manyChanges       = 1000
	manyChangesWithin = 2 * time.Minute
)

func (c *C) openStreams(n int) []*lab.Stream { return c.openStreamsTo(n, c.At(1, 80)) }

func (c *C) openStreamsTo(n int, to netip.AddrPort) []*lab.Stream {
	c.doing("opening %s to %s", count(n, "connection"), to)
	var out []*lab.Stream
	for range n {
		s, err := c.Lab.A.Stream(to, lab.From{})
		c.NoError(err)
		c.Cleanup(func() { s.Close() })
		out = append(out, s)
	}
	return out
}

// flow is a UDP flow with the endpoint that first answered it.
type flow struct {
	net.Conn
	endpoint int
}

func (c *C) openFlows(n int) []flow {
	c.doing("opening %s to %s", count(n, "UDP flow"), c.At(1, 80))
	var out []flow
	for range n {
		conn, err := c.Lab.A.Dial("udp", c.At(1, 80), lab.From{})
		c.NoError(err)
		c.Cleanup(func() { conn.Close() })
		answer, err := lab.RequestAddresses(conn, c.Patience)
		c.NoError(err)
		out = append(out, flow{conn, c.Number(answer.Endpoint)})
	}
	return out
}

// requireAnswered requires that UDP flows get answers, from any endpoint.
func (c *C) requireAnswered(flows []flow) {
	for _, f := range flows {
		_, err := lab.RequestAddresses(f, c.Patience)
		c.NoError(err)
	}
}

func (c *C) requireAlive(streams []*lab.Stream, flows []flow) {
	c.doing("a request on each of %s and %s%s", count(len(streams), "connection"), count(len(flows), "UDP flow"), c.progress())
	for _, s := range streams {
		c.NoError(s.Alive())
	}
	for _, f := range flows {
		answer, err := lab.RequestAddresses(f, c.Patience)
		c.NoError(err)
		c.Equal(f.endpoint, c.Number(answer.Endpoint))
	}
}
