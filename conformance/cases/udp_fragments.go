package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func udpFragments() Case {
	return Case{
		Name:  "udp-fragments",
		Shows: "datagrams of all sizes, from none to the largest of the family, arrive unharmed in both directions, in every forwarding mode",
		Run: func(c *C) {
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, c.inEachMode("all")...)
			for i, mode := range c.forwardingModes() {
				for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
					flow, err := client.Dial("udp", c.At(1+i, 80), lab.From{})
					c.NoError(err)
					c.Cleanup(func() { flow.Close() })
					// A datagram of 1472 bytes fills a packet of IPv4, and one of 1452 bytes a packet of IPv6.
					for _, size := range []int{0, 1, 512, 1452, 1453, 1472, 1473, 3000, 9000, 40000, 60000, lab.LargestPayload(c.V4), 0} {
						c.NoError(client.Echo(flow, size), "mode %s, client %s", mode, client.Name)
					}
				}
			}
		},
	}
}
