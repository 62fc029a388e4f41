package cases

import "kubelb.k8c.io/core/model"

func samePortOnTwoVIPs() Case {
	return Case{
		Name:  "same-port-on-two-vips",
		Shows: "the same port of two addresses is two frontends, each with its own pool",
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("n0", 0), c.Pool("n1", 1)},
				c.Frontend(model.TCP, 1, 80, 30080, "n0"), c.Frontend(model.TCP, 2, 80, 30080, "n1"),
				c.Frontend(model.UDP, 1, 80, 30080, "n0"), c.Frontend(model.UDP, 2, 80, 30080, "n1"))
			for _, network := range networks {
				c.Equal(map[int]int{0: 5}, c.Request(5, network, c.At(1, 80)), network)
				c.Equal(map[int]int{1: 5}, c.Request(5, network, c.At(2, 80)), network)
			}
		},
	}
}
