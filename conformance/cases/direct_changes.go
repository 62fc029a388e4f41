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
		Shows: "flows of a direct frontend continue while its pool and its forwarding mode change; new flows follow the change, and an empty pool refuses them",
		Needs: []dataplane.Feature{dataplane.Direct, dataplane.Drain, dataplane.Refusal},
		Run: func(c *C) {
			pools, frontends := c.directFrontends()
			c.Apply(pools, frontends...)
			streams, flows := c.openStreams(20), c.openFlows(20)

			draining := c.Pool("all", 0, 1, 2, 3)
			draining.Endpoints[0].State, draining.Endpoints[1].State = model.Draining, model.Draining
			c.Apply([]model.Pool{draining}, frontends...)
			c.requireAlive(streams, flows)
			for _, network := range networks {
				seen := c.Request(40, network, c.At(1, 80))
				c.Zero(seen[0]+seen[1], "%s: a new flow meets a draining endpoint", network)
				c.Len(seen, 2, network)
			}
			c.Apply(pools, frontends...)
			c.requireAlive(streams, flows)

			c.NoError(c.Gateway.Process.Kill())
			c.requireAlive(streams, flows)
			c.Gateway.Start()
			c.Apply(pools, frontends...)
			c.requireAlive(streams, flows)

			nat := slices.Clone(frontends)
			for i := range 2 {
				nat[i].Forwarding, nat[i].TargetPort = model.NAT, 30080
			}
			c.Apply(pools, nat...)
			for _, s := range streams {
				c.NoError(s.Alive(), "a connection that began in direct mode")
			}
			for _, network := range networks {
				answer, err := c.Lab.A.Request(network, c.At(1, 80), lab.From{})
				c.NoError(err)
				c.Equal(c.Gateway.Address(c.V4), answer.Client.Addr(), "%s in mode nat", network)
			}
			between := c.openStreams(5)
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
				c.Equal(map[int]int{3: 10}, c.Request(10, network, c.At(1, 80)), network)
			}
		},
	}
}
