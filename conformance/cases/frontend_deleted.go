package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func frontendDeleted() Case {
	return Case{
		Name:  "frontend-deleted",
		Shows: "a frontend that is deleted while in use takes nothing new at once, and its neighbours do not notice",
		Run: func(c *C) {
			c.Serve(30080)
			pools := []model.Pool{c.Pool("all", 0, 1)}
			stays := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			goes := []model.Frontend{c.Frontend(model.TCP, 1, 81, 30080, "all"), c.Frontend(model.UDP, 1, 81, 30080, "all"), c.Frontend(model.TCP, 2, 80, 30080, "all")}
			c.Apply(pools, append(stays, goes...)...)
			streams, flows := c.streams(5), c.flows(5)
			gone, err := c.Lab.A.Dial("udp", c.At(1, 81), from(5000))
			c.NoError(err)
			c.Cleanup(func() { gone.Close() })
			c.endpointOf(flow{Conn: gone})
			c.Ask(3, "tcp", c.At(2, 80))
			c.Apply(pools, stays...)
			c.MustRefuse("tcp", c.At(1, 81))
			c.True(lab.Unanswered(gone, c.Patience), "a datagram of a flow to a deleted frontend is answered")
			_, err = c.Lab.A.Ask("tcp", c.At(2, 80), from(0))
			c.Error(err, "an address without frontends is served")
			c.alive(streams, flows)
		},
	}
}
