package cases

import (
	"net"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func vipReused() Case {
	return Case{
		Name: "vip-reused",
		Shows: "when an address and port pass to another tenant, at once or after a while without an owner, what the former one had ends: its connections, its datagrams, " +
			"and those of its clients that fell silent and come again from the same ports",
		Run: func(c *C) {
			c.ServeOn(0, 30080)
			c.ServeOn(1, 30081)
			first, second := c.ownedBy("t", 0, 30080), c.ownedBy("u", 1, 30081)
			c.own(first)
			before := c.clients()
			c.Apply(nil)
			c.own(second)
			c.followTo(1, before)
			c.Equal(map[int]int{1: 10}, c.Ask(10, "tcp", c.At(1, 80)))

			before = c.clients()
			c.own(first)
			c.followTo(0, before)
			c.Equal(map[int]int{0: 10}, c.Ask(10, "tcp", c.At(1, 80)))
		},
	}
}

// ownedBy serves the address from one endpoint of the tenant.
func (c *C) ownedBy(tenant string, endpoint int, target uint16) model.Snapshot {
	pool := c.Pool("one", endpoint)
	pool.ID, pool.Tenant = model.PoolID(tenant+"/one"), tenant
	frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, target, "one"), c.Frontend(model.UDP, 1, 80, target, "one")}
	for i := range frontends {
		frontends[i].Owner, frontends[i].Tenant, frontends[i].Pool = model.ObjectName{Namespace: "tenant-" + tenant, Name: "lb"}, tenant, pool.ID
	}
	return model.Snapshot{Pools: []model.Pool{pool}, Frontends: frontends}
}

func (c *C) own(s model.Snapshot) { c.Apply(s.Pools, s.Frontends...) }

// clients are an address's clients of one time: some go on, others have vanished without a word, as hosts do that lose power.
type clients struct {
	streams  []*lab.Stream
	vanished []lab.From
	flows    []flow
}

func (c *C) clients() clients {
	out := clients{streams: c.streams(5), flows: c.flows(5)}
	for _, s := range c.streams(5) {
		at := s.LocalAddr().(*net.TCPAddr).AddrPort()
		out.vanished = append(out.vanished, lab.From{Address: at.Addr().Unmap(), Port: at.Port()})
		c.NoError(s.Vanish())
	}
	return out
}

// followTo requires that nothing of the clients' goes on, and that who comes again meets the endpoint, which hears nothing of connections to the
// former one.
func (c *C) followTo(endpoint int, former clients) {
	heard, err := c.Lab.Nodes[endpoint].Capture(func(p lab.Packet) bool { return p.Protocol == lab.TCP && !p.Out })
	c.NoError(err)
	for _, s := range former.streams {
		c.Error(s.Alive(), "a connection to the former owner goes on")
	}
	c.Empty(heard.Close(), "connections to the former owner reach the new one's endpoint")
	for _, from := range former.vanished {
		answer, err := c.Lab.A.Ask("tcp", c.At(1, 80), from)
		c.NoError(err)
		c.Equal(endpoint, c.Number(answer.Endpoint), "who comes again from port %d meets the former owner", from.Port)
	}
	for _, f := range former.flows {
		c.Equal(endpoint, c.endpointOf(f), "a datagram went to the former owner")
	}
}
