package cases

import "kubelb.k8c.io/core/model"

func ownPoolChanges() Case {
	return Case{
		Name:  "own-pool-changes",
		Shows: "established connections continue when endpoints join or leave their pool, when their own endpoint leaves, and when their frontend gets another pool; a UDP flow leaves an endpoint that is gone",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply([]model.Pool{c.Pool("all", 1)}, frontends...)
			streams, flows := c.openStreams(10), c.openFlows(10)
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends...)
			c.requireAlive(streams, flows)
			c.Apply([]model.Pool{c.Pool("all", 0, 2)}, frontends...)
			c.requireAlive(streams, nil)
			for i := range flows {
				flows[i].endpoint = c.endpointOf(flows[i])
				c.NotEqual(1, flows[i].endpoint)
			}
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2)}, frontends...)
			c.requireAlive(streams, flows)
			streams = append(streams, c.openStreams(10)...)
			for i := range frontends {
				frontends[i].Pool = c.PoolID(tenant, "few")
			}
			c.Apply([]model.Pool{c.Pool("few", 0, 2)}, frontends...)
			c.requireAlive(streams, nil)
		},
	}
}
