package cases

import (
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func directChanges() Case {
	return Case{
		Name:  "direct-changes",
		Shows: "flows of a direct frontend live through changes of its pool and of its mode; new ones go where they now may, and an empty pool refuses",
		Needs: []dataplane.Feature{dataplane.Direct, dataplane.Drain, dataplane.Refusal},
		Run: func(c *C) {
			pools, frontends := c.directFrontends()
			c.Apply(pools, frontends...)
			streams, flows := c.streams(20), c.flows(20)

			drains := c.Pool("all", 0, 1, 2, 3)
			drains.Endpoints[0].State, drains.Endpoints[1].State = model.Draining, model.Draining
			c.Apply([]model.Pool{drains}, frontends...)
			c.alive(streams, flows)
			for _, network := range networks {
				seen := c.Ask(40, network, c.At(1, 80))
				c.Zero(seen[0]+seen[1], "%s: a new flow meets an endpoint that drains", network)
				c.Len(seen, 2, network)
			}
			c.Apply(pools, frontends...)
			c.alive(streams, flows)

			c.NoError(c.Gateway.Process.Kill())
			c.alive(streams, flows)
			c.Gateway.Start()
			c.Apply(pools, frontends...)
			c.alive(streams, flows)

			nat := slices.Clone(frontends)
			for i := range 2 {
				nat[i].Forwarding, nat[i].TargetPort = model.NAT, 30080
			}
			c.Apply(pools, nat...)
			for _, s := range streams {
				c.NoError(s.Alive(), "a connection that began in direct mode")
			}
			for _, network := range networks {
				answer, err := c.Lab.A.Ask(network, c.At(1, 80), lab.From{})
				c.NoError(err)
				c.Equal(c.Gateway.Address(c.V4), answer.Client.Addr(), "%s in nat mode", network)
			}
			between := c.streams(5)
			c.Apply(pools, frontends...)
			for _, s := range append(streams, between...) {
				c.NoError(s.Alive())
			}
			c.Apply([]model.Pool{c.Pool("all")}, frontends...)
			for _, network := range networks {
				c.MustRefuseOutright(network, c.At(1, 80))
			}
			c.Apply([]model.Pool{c.Pool("all", 3)}, frontends...)
			for _, network := range networks {
				c.Equal(map[int]int{3: 10}, c.Ask(10, network, c.At(1, 80)), network)
			}
		},
	}
}
