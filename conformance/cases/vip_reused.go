package cases

import (
	"net"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func vipReused() Case {
	return Case{
		Name: "vip-reused",
		Shows: "when another tenant gets an address and port, at once or after a time without an owner, all flows of the former owner end, " +
			"also those of clients that vanished and return from the same ports",
		Run: func(c *C) {
			c.ServeOn(0, 30080)
			c.ServeOn(1, 30081)
			first, second := c.ownedBy(tenant, 0, 30080), c.ownedBy(otherTenant, 1, 30081)
			c.applySnapshot(first)
			before := c.openClients()
			c.Apply(nil)
			c.applySnapshot(second)
			c.requireFollow(1, before)
			c.Equal(map[int]int{1: 10}, c.Request(10, "tcp", c.At(1, 80)))

			before = c.openClients()
			c.applySnapshot(first)
			c.requireFollow(0, before)
			c.Equal(map[int]int{0: 10}, c.Request(10, "tcp", c.At(1, 80)))
		},
	}
}

// ownedBy returns frontends of the tenant for the address, with one endpoint.
func (c *C) ownedBy(tenant string, endpoint int, target uint16) model.Snapshot {
	pool := c.Pool("one", endpoint)
	pool.ID, pool.Tenant = c.PoolID(tenant, "one"), tenant
	frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, target, "one"), c.Frontend(model.UDP, 1, 80, target, "one")}
	for i := range frontends {
		c.give(&frontends[i], tenant, "one")
	}
	return model.Snapshot{Pools: []model.Pool{pool}, Frontends: frontends}
}

func (c *C) applySnapshot(s model.Snapshot) { c.Apply(s.Pools, s.Frontends...) }

// clients are clients of one owner of an address. Those in vanished sent no FIN or reset, like a host that loses power.
type clients struct {
	streams  []*lab.Stream
	vanished []lab.From
	flows    []flow
}

func (c *C) openClients() clients {
	out := clients{streams: c.openStreams(5), flows: c.openFlows(5)}
	for _, s := range c.openStreams(5) {
		at := s.LocalAddr().(*net.TCPAddr).AddrPort()
		out.vanished = append(out.vanished, lab.From{Address: at.Addr().Unmap(), Port: at.Port()})
		c.NoError(s.Vanish())
	}
	return out
}

// requireFollow requires that no flow of the former clients continues, that clients that return meet the endpoint, and that the
// endpoint gets no packets of former connections.
func (c *C) requireFollow(endpoint int, former clients) {
	capture, err := c.Lab.Nodes[endpoint].Capture(func(p lab.Packet) bool { return p.Protocol == lab.TCP && !p.Out })
	c.NoError(err)
	for _, s := range former.streams {
		c.Error(s.Alive(), "a connection to the former owner continues")
	}
	c.Empty(capture.Close(), "packets of connections to the former owner reach the endpoint of the new owner")
	for _, from := range former.vanished {
		answer, err := c.Lab.A.Request("tcp", c.At(1, 80), from)
		c.NoError(err)
		c.Equal(endpoint, c.Number(answer.Endpoint), "a client that returns from port %d meets the former owner", from.Port)
	}
	for _, f := range former.flows {
		c.Equal(endpoint, c.endpointOf(f), "a datagram goes to the former owner")
	}
}
