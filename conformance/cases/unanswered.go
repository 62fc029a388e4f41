package cases

import (
	"time"

	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func unanswered() Case {
	return Case{
		Name:  "unanswered",
		Shows: "a connection whose endpoint does not answer moves to another endpoint as soon as the first one is unhealthy or gone",
		Run: func(c *C) {
			c.Serve(30080)
			frontend := c.Frontend(model.TCP, 1, 80, 30080, "all")
			for _, leave := range []func(*model.Pool){
				func(p *model.Pool) { p.Endpoints[0].State = model.Unhealthy },
				func(p *model.Pool) { p.Endpoints = p.Endpoints[1:] },
			} {
				c.Apply([]model.Pool{c.Pool("all", 0)}, frontend)
				// The gateway has to know the MAC address of the endpoint, else it reports it as unreachable after three seconds.
				c.Request(1, "tcp", c.At(1, 80))
				c.NoError(c.Lab.Nodes[0].DropIncoming(true))
				answered := make(chan lab.Answer, 1)
				failed := make(chan error, 1)
				go func() {
					answer, err := c.Lab.A.Request("tcp", c.At(1, 80), lab.From{})
					answered <- answer
					failed <- err
				}()
				time.Sleep(c.Patience.For(300 * time.Millisecond))
				pool := c.Pool("all", 0, 1)
				leave(&pool)
				c.Apply([]model.Pool{pool}, frontend)
				c.NoError(<-failed)
				c.Equal(1, c.Number((<-answered).Endpoint))
				c.NoError(c.Lab.Nodes[0].DropIncoming(false))
			}
		},
	}
}
