package cases

import "kubelb.k8c.io/core/model"

func ownPoolChanges() Case {
	return Case{
		Name:  "own-pool-changes",
		Shows: "established connections live on while their own pool gains and loses other endpoints, and even when theirs leaves, or their frontend gets another pool instead; a UDP flow leaves an endpoint that is gone",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply([]model.Pool{c.Pool("all", 1)}, frontends...)
			streams, flows := c.streams(10), c.flows(10)
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, frontends...)
			c.alive(streams, flows)
			c.Apply([]model.Pool{c.Pool("all", 0, 2)}, frontends...)
			c.alive(streams, nil)
			for i := range flows {
				flows[i].endpoint = c.endpointOf(flows[i])
				c.NotEqual(1, flows[i].endpoint)
			}
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2)}, frontends...)
			c.alive(streams, flows)
			streams = append(streams, c.streams(10)...)
			for i := range frontends {
				frontends[i].Pool = "t/few"
			}
			c.Apply([]model.Pool{c.Pool("few", 0, 2)}, frontends...)
			c.alive(streams, nil)
		},
	}
}
