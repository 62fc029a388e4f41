package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func icmpEcho() Case {
	return Case{
		Name:  "icmp-echo",
		Shows: "an address with a frontend answers ICMP echo requests; an address without frontends does not",
		Needs: []dataplane.Feature{dataplane.ICMPEcho},
		Run: func(c *C) {
			c.Apply([]model.Pool{c.Pool("all", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				for range 3 {
					c.NoError(client.Ping(c.VIP(1)))
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

func pathMTU() Case {
	return Case{
		Name:  "path-mtu",
		Shows: "the ICMP error of a router that a packet is too large reaches the endpoint that sent the packet",
		Needs: []dataplane.Feature{dataplane.PathMTU},
		Run: func(c *C) {
			c.Serve(30080)
			c.NoError(c.Lab.NarrowPathToB(1300))
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			for range 8 {
				c.NoError(c.Lab.B.Transfer(c.At(1, 80), 1<<20))
			}
		},
	}
}
