package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func drain() Case {
	return Case{
		Name:  "drain",
		Shows: "a draining endpoint keeps its connections and UDP flows, and gets no new ones",
		Needs: []dataplane.Feature{dataplane.Drain},
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			pool := c.Pool("all", 0, 1)
			c.Apply([]model.Pool{pool}, frontends...)
			streams, flows := c.openStreams(20), c.openFlows(20)
			pool.Endpoints[0].State = model.Draining
			c.Apply([]model.Pool{pool}, frontends...)
			c.requireAlive(streams, flows)
			for _, network := range networks {
				c.Equal(map[int]int{1: 50}, c.Request(50, network, c.At(1, 80)), network)
			}
			c.requireAlive(streams, flows)
		},
	}
}
