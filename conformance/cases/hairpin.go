package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func hairpin() Case {
	return Case{
		Name:  "hairpin",
		Shows: "a node that is an endpoint can also be a client, even of itself",
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("self", 0), c.Pool("all", 0, 1, 2, 3)},
				c.Frontend(model.TCP, 1, 80, 30080, "self"), c.Frontend(model.UDP, 1, 80, 30080, "self"), c.Frontend(model.TCP, 1, 81, 30080, "all"))
			for _, network := range networks {
				answer, err := c.Lab.Nodes[0].Request(network, c.At(1, 80), lab.From{})
				c.NoError(err, network)
				c.Equal(0, c.Number(answer.Endpoint))
			}
			_, err := c.Lab.Nodes[0].RequestTimes(40, "tcp", c.At(1, 81))
			c.NoError(err)
		},
	}
}
