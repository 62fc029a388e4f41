package cases

import (
	"net"
	"net/netip"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func longConnections() Case {
	return Case{
		Name:  "long-connections",
		Shows: "established connections and UDP flows continue during a thousand changes of other frontends and pools: none is lost or reset; a dataplane that proxies connections reports how many there are",
		Run: func(c *C) {
			c.Serve(30080)
			pool := c.Pool("all", 0, 1, 2, 3)
			used := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply([]model.Pool{pool}, used...)
			streams, flows := c.openStreams(20), c.openFlows(20)
			stats, err := c.Gateway.Process.Stats(c.ctx)
			c.NoError(err)
			c.True(stats.Proxied == 0 || stats.Proxied == uint64(len(streams)), "the backend reports that it proxies %d of %d connections", stats.Proxied, len(streams))
			for i := range 1000 {
				other := c.Pool("other", i%4, (i+1)%4)
				frontends := append(used, c.Frontend(model.TCP, 2, uint16(1000+i%7), 30080, "other"), c.Frontend(model.UDP, 3, 53, uint16(30000+i%3), "other"))
				c.Apply([]model.Pool{pool, other}, frontends[:2+i%3]...)
				if i%50 == 0 {
					c.requireAlive(streams, flows)
				}
			}
			c.requireAlive(streams, flows)
		},
	}
}

func (c *C) openStreams(n int) []*lab.Stream { return c.openStreamsTo(n, c.At(1, 80)) }

func (c *C) openStreamsTo(n int, to netip.AddrPort) []*lab.Stream {
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
	for _, s := range streams {
		c.NoError(s.Alive())
	}
	for _, f := range flows {
		answer, err := lab.RequestAddresses(f, c.Patience)
		c.NoError(err)
		c.Equal(f.endpoint, c.Number(answer.Endpoint))
	}
}
