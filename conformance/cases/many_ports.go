package cases

import "kubelb.k8c.io/core/model"

func manyPorts() Case {
	return Case{
		Name:  "many-ports",
		Shows: "each port of an address leads to its own target port, also the ports 1 and 65535",
		Run: func(c *C) {
			for node, target := range []uint16{30001, 30002, 30003} {
				c.ServeOn(node, target)
			}
			c.Apply([]model.Pool{c.Pool("n0", 0), c.Pool("n1", 1), c.Pool("n2", 2)},
				c.Frontend(model.TCP, 1, 1, 30001, "n0"), c.Frontend(model.TCP, 1, 443, 30002, "n1"), c.Frontend(model.TCP, 1, 65535, 30003, "n2"),
				c.Frontend(model.UDP, 1, 1, 30001, "n0"), c.Frontend(model.UDP, 1, 443, 30002, "n1"), c.Frontend(model.UDP, 1, 65535, 30003, "n2"))
			for _, network := range networks {
				for node, port := range []uint16{1, 443, 65535} {
					c.Equal(map[int]int{node: 3}, c.Request(3, network, c.At(1, port)), "%s port %d", network, port)
				}
			}
		},
	}
}
