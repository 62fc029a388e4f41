package cases

import "kubelb.k8c.io/core/model"

func gatewaysAgree() Case {
	return Case{
		Name:     "gateways-agree",
		Shows:    "a flow meets the same endpoint by every gateway",
		Gateways: 2,
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("all", numbers(7)...)}, c.Frontend(model.TCP, 1, 80, 30080, "all"))
			first := c.endpointsOf(200)
			c.NoError(c.Lab.RouteVIPs(1))
			c.Equal(first, c.endpointsOf(200))
		},
	}
}
