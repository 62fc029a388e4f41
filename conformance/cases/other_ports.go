package cases

import "kubelb.k8c.io/core/model"

func otherPorts() Case {
	return Case{
		Name:  "other-ports-reach-nothing",
		Shows: "a port of an external address without a frontend is refused, and never reaches a port on which the gateway itself listens",
		Run: func(c *C) {
			server, err := c.Gateway.Serve(22)
			c.NoError(err)
			c.Cleanup(func() { server.Close() })
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("one", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "one"))
			c.MustRefuse("tcp", c.At(1, 22))
			c.MustRefuse("udp", c.At(1, 22))
			c.MustRefuse("udp", c.At(1, 80))
			c.Zero(server.Accepted())
		},
	}
}
