package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func udpManyClients() Case {
	return Case{
		Name:  "udp-many-clients",
		Shows: "each of a thousand simultaneous flows gets its own answers",
		Run: func(c *C) {
			c.Serve(30053)
			c.Apply([]model.Pool{c.Pool("all", 0, 1, 2, 3)}, c.Frontend(model.UDP, 1, 53, 30053, "all"))
			froms := make([]lab.From, 1000)
			for i := range froms {
				froms[i].Port = uint16(20000 + i)
			}
			first, err := c.Lab.A.RequestFromEach("udp", c.At(1, 53), froms)
			c.NoError(err)
			second, err := c.Lab.A.RequestFromEach("udp", c.At(1, 53), froms)
			c.NoError(err)
			for i := range froms {
				c.Equal(first[i].Endpoint, second[i].Endpoint, "flow from port %d", froms[i].Port)
			}
		},
	}
}
