package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func refusal() Case {
	return Case{
		Name:  "refusal",
		Shows: "a frontend with an empty pool, and a port without a frontend, refuse the first packet of a connection and every datagram",
		Needs: []dataplane.Feature{dataplane.Refusal},
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("none"), c.Pool("one", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "none"), c.Frontend(model.UDP, 1, 80, 30080, "none"),
				c.Frontend(model.TCP, 1, 81, 30080, "one"))
			for _, network := range networks {
				c.MustRefuseOutright(network, c.At(1, 80))
				c.MustRefuseOutright(network, c.At(1, 82))
			}
			c.MustRefuseOutright("udp", c.At(1, 81))
		},
	}
}
