package cases

import (
	"time"

	"kubelb.k8c.io/core/model"
)

func endpointsChange() Case {
	return Case{
		Name:  "endpoints-change-under-load",
		Shows: "while endpoints leave, join and return, no new connection fails, and every UDP request is answered if it is sent again",
		Run: func(c *C) {
			c.Serve(30080)
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			c.Apply([]model.Pool{c.Pool("all", 0, 1)}, frontends...)
			tcp, udp := c.Load("tcp", c.At(1, 80)), c.Load("udp", c.At(1, 80))
			const enough = 51
			longest := c.Patience.For(20 * time.Second)
			for begun, round := time.Now(), 0; round < 10 || min(tcp.made.Load(), udp.made.Load()) < enough && time.Since(begun) < longest; round++ {
				for _, set := range [][]int{{0}, {0, 1, 2, 3}, {2, 3}, {1}, {1, 2}} {
					c.Apply([]model.Pool{c.Pool("all", set...)}, frontends...)
				}
			}
			c.GreaterOrEqual(tcp.Stop(), enough)
			c.GreaterOrEqual(udp.Stop(), enough)
		},
	}
}
