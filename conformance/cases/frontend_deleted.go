package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func frontendDeleted() Case {
	return Case{
		Name:  "frontend-deleted",
		Shows: "a frontend that is deleted while in use refuses new flows at once; other frontends are not affected",
		Run: func(c *C) {
			c.Serve(30080)
			pools := []model.Pool{c.Pool("all", 0, 1)}
			kept := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			deleted := []model.Frontend{c.Frontend(model.TCP, 1, 81, 30080, "all"), c.Frontend(model.UDP, 1, 81, 30080, "all"), c.Frontend(model.TCP, 2, 80, 30080, "all")}
			c.Apply(pools, append(kept, deleted...)...)
			streams, flows := c.openStreams(5), c.openFlows(5)
			conn, err := c.Lab.A.Dial("udp", c.At(1, 81), from(5000))
			c.NoError(err)
			c.Cleanup(func() { conn.Close() })
			c.endpointOf(flow{Conn: conn})
			c.Request(3, "tcp", c.At(2, 80))
			c.Apply(pools, kept...)
			c.MustRefuse("tcp", c.At(1, 81))
			c.True(lab.Unanswered(conn, c.Patience), "a datagram to a deleted frontend is answered")
			_, err = c.Lab.A.Request("tcp", c.At(2, 80), from(0))
			c.Error(err, "an address without frontends is served")
			c.requireAlive(streams, flows)
		},
	}
}
