package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func udpReply() Case {
	return Case{
		Name:  "udp-reply",
		Shows: "a datagram from either client reaches an endpoint, the reply comes from the external address, and a flow stays with its endpoint",
		Run: func(c *C) {
			c.Serve(30053)
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, c.Frontend(model.UDP, 1, 53, 30053, "all"))
			for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
				flow, err := client.Dial("udp", c.At(1, 53), lab.From{})
				c.NoError(err)
				first, err := lab.RequestAddresses(flow, c.Patience)
				c.NoError(err)
				for range 20 {
					again, err := lab.RequestAddresses(flow, c.Patience)
					c.NoError(err)
					c.Equal(first.Endpoint, again.Endpoint)
				}
				c.NoError(flow.Close())
			}
		},
	}
}
