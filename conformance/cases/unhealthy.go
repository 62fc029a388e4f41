package cases

import (
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func unhealthy() Case {
	return Case{
		Name:  "unhealthy",
		Shows: "an unhealthy endpoint gets no new flow, keeps its connections, and loses its UDP flows; other endpoints keep their flows, and new flows nearly all theirs; after its recovery it gets its share again",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			pool := c.Pool("all", 0, 1, 2)
			c.Apply([]model.Pool{pool}, frontends...)
			before, flows, streams := c.endpointsOf(200), c.openFlows(30), c.openStreams(15)
			pool.Endpoints[1].State = model.Unhealthy
			c.Apply([]model.Pool{pool}, frontends...)
			after := c.endpointsOf(200)
			c.requireAlive(streams, nil)
			moved := 0
			for i := range before {
				c.NotEqual(1, after[i])
				if before[i] != 1 && before[i] != after[i] {
					moved++
				}
			}
			c.LessOrEqual(moved, c.mayMove(len(before)), "new flows that met a healthy endpoint and now meet another one")
			for _, f := range flows {
				now := c.endpointOf(f)
				c.NotEqual(1, now)
				if f.endpoint != 1 {
					c.Equal(f.endpoint, now)
				}
			}
			pool.Endpoints[1].State = model.Active
			c.Apply([]model.Pool{pool}, frontends...)
			c.Equal(before, c.endpointsOf(200))
		},
	}
}

// mayMove returns how many of n new flows may meet another endpoint because the state of a third one has changed: none with the table of core/maglev, and few
// with another table.
func (c *C) mayMove(n int) int {
	if slices.Contains(c.Description.Features, dataplane.MaglevTable) {
		return 0
	}
	return n / 10
}
