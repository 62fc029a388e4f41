package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func icmpEcho() Case {
	return Case{
		Name:  "icmp-echo",
		Shows: "an address with a frontend answers ICMP echo requests of all sizes, fragmented ones included, with the same bytes; an address without frontends does not",
		Needs: []dataplane.Feature{dataplane.ICMPEcho},
		Run: func(c *C) {
			c.Apply([]model.Pool{c.Pool("all", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			// A request of 1472 bytes fills a packet of IPv4, and one of 1452 bytes a packet of IPv6. A dataplane may limit the packets that it
			// answers in a second.
			for client, sizes := range map[*lab.Host][]int{
				c.Lab.A: {0, 1, 56, 1452, 1453, 1472, 1473, 3000, 9001, 0},
				c.Lab.B: {56, lab.LargestPayload(c.V4)},
			} {
				for _, size := range sizes {
					c.NoError(client.PingOfSize(c.VIP(1), size))
				}
			}
			c.Error(c.Lab.A.Ping(c.VIP(2)))
		},
	}
}

func unreachable() Case {
	return Case{
		Name:  "unreachable",
		Shows: "if an endpoint refuses a flow, the client learns it at once: by a reset, or by an ICMP error from the external address",
		Needs: []dataplane.Feature{dataplane.Refusal},
		Run: func(c *C) {
			c.Apply([]model.Pool{c.Pool("all", 0, 1)}, c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"))
			for _, network := range networks {
				c.MustRefuseOutright(network, c.At(1, 80))
			}
		},
	}
}
