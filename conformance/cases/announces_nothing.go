package cases

import (
	"time"

	"kubelb.k8c.io/core/model"
)

func announcesNothing() Case {
	return Case{
		Name:  "announces-nothing",
		Shows: "a host with the backend answers no ARP request and no neighbour solicitation for an external address: all gateways hold it, and the manager answers at one of them",
		Run: func(c *C) {
			c.Serve(30080)
			c.Apply([]model.Pool{c.Pool("all", 0)}, c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"))
			c.Request(1, "tcp", c.At(1, 80))
			within := c.Patience.For(time.Second)
			answered, err := c.Lab.A.Resolves(c.frontAddress(0), within)
			c.NoError(err)
			c.True(answered, "the gateway does not answer for an address of its own")
			answered, err = c.Lab.A.Resolves(c.VIP(1), within)
			c.NoError(err)
			c.False(answered, "the gateway answers for %s", c.VIP(1))
		},
	}
}
