package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func endpointAddresses() Case {
	return Case{
		Name: "endpoint-addresses",
		Shows: "new flows follow an endpoint's id: to its new address when the address changes, also when two endpoints exchange their addresses; flows of other endpoints do not move, " +
			"connections to the former address continue, and UDP flows leave it; the name of the pool makes no difference",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply([]model.Pool{c.named("all", 0, 1, 2, 3)}, frontends...)
			before := c.endpointsOf(150)
			streams, flows := c.openStreams(12), c.openFlows(24)
			for _, addresses := range [][]int{
				{0, 5, 2, 3}, // the address of the second one changes
				{5, 0, 2, 3}, // the first two exchange their addresses
				{5, 2, 0, 7}, // the second gets the third one's address, the third the first one's, and the last a new one
				{0, 1, 2, 3},
			} {
				c.Apply([]model.Pool{c.named("all", addresses...)}, frontends...)
				want := make([]int, len(before))
				for i, endpoint := range before {
					want[i] = addresses[endpoint]
				}
				c.Equal(want, c.endpointsOf(150), "the endpoints have the addresses %v", addresses)
				c.requireAlive(streams, nil)
				for i, f := range flows {
					flows[i].endpoint = c.endpointOf(f)
					c.Contains(addresses, flows[i].endpoint, "a UDP flow meets an address that is gone")
				}
			}
			for i := range frontends {
				frontends[i].Pool = c.PoolID(tenant, "another")
			}
			c.Apply([]model.Pool{c.named("another", 0, 1, 2, 3)}, frontends...)
			c.Equal(before, c.endpointsOf(150), "a pool of another name with the same endpoints")
			c.Apply([]model.Pool{c.named("all", 0, 1, 2, 3)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			_, err := c.Lab.B.Request("tcp", c.At(1, 80), lab.From{})
			c.NoError(err)
		},
	}
}

// named returns a pool of endpoints with these addresses. Their ids are names, which do not depend on the addresses.
func (c *C) named(id string, addresses ...int) model.Pool {
	p := c.Pool(id)
	for i, number := range addresses {
		p.Endpoints = append(p.Endpoints, model.Endpoint{ID: "worker-" + string(rune('a'+i)) + ".example", Address: lab.EndpointAddress(c.V4, number), Weight: 1})
	}
	return p
}
