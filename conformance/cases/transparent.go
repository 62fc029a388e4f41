package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func transparent() Case {
	return Case{
		Name:  "transparent",
		Shows: "the endpoint of a transparent frontend sees the client's address, if nodes answer by the gateway; a change of the forwarding mode affects new flows, ends no connection, and UDP flows continue",
		Needs: []dataplane.Feature{dataplane.Transparent},
		Run: func(c *C) {
			c.Serve(30080)
			c.NoError(c.Lab.RouteNodesVia(0))
			pools := []model.Pool{c.Pool("all", 0, 1, 2, 3)}
			frontends := func(mode model.Forwarding) []model.Frontend {
				out := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
				for i := range out {
					out[i].Forwarding = mode
				}
				return append(out, c.Frontend(model.TCP, 2, 80, 30080, "all"))
			}
			c.Apply(pools, frontends(model.Transparent)...)
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				for _, network := range networks {
					for range 20 {
						answer, err := client.Request(network, c.At(1, 80), lab.From{})
						c.NoError(err)
						c.Equal(client.Address(c.V4), answer.Client.Addr(), network)
					}
				}
				answer, err := client.Request("tcp", c.At(2, 80), lab.From{})
				c.NoError(err)
				c.Equal(c.Gateway.Address(c.V4), answer.Client.Addr(), "another frontend, in mode nat")
			}
			streams, flows := c.openStreams(5), c.openFlows(5)
			c.Apply(pools, frontends(model.NAT)...)
			c.requireAlive(streams, nil)
			c.requireAnswered(flows)
			for _, network := range networks {
				answer, err := c.Lab.A.Request(network, c.At(1, 80), lab.From{})
				c.NoError(err)
				c.Equal(c.Gateway.Address(c.V4), answer.Client.Addr(), "%s in mode nat", network)
			}
			c.Apply(pools, frontends(model.Transparent)...)
			c.requireAlive(streams, nil)
			c.requireAnswered(flows)
			answer, err := lab.RequestAddresses(flows[0], c.Patience)
			c.NoError(err)
			c.Equal(c.Lab.A.Address(c.V4), answer.Client.Addr(), "a UDP flow, whose next datagram counts as a new flow")
		},
	}
}
