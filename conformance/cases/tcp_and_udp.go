package cases

import "kubelb.k8c.io/core/model"

func tcpAndUDP() Case {
	return Case{
		Name:  "tcp-and-udp-on-one-port",
		Shows: "TCP and UDP of one port are two frontends: each has its own pool, and deleting one does not affect the other",
		Run: func(c *C) {
			c.Serve(30053)
			pools := []model.Pool{c.Pool("n0", 0), c.Pool("n1", 1)}
			tcp, udp := c.Frontend(model.TCP, 1, 53, 30053, "n0"), c.Frontend(model.UDP, 1, 53, 30053, "n1")
			c.Apply(pools, tcp, udp)
			c.Equal(map[int]int{0: 5}, c.Request(5, "tcp", c.At(1, 53)))
			c.Equal(map[int]int{1: 5}, c.Request(5, "udp", c.At(1, 53)))
			c.Apply(pools, udp)
			c.MustRefuse("tcp", c.At(1, 53))
			c.Equal(map[int]int{1: 5}, c.Request(5, "udp", c.At(1, 53)))
		},
	}
}
