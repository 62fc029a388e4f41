package cases

import (
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func purge() Case {
	return Case{
		Name:     "purge",
		Gateways: 2,
		Shows:    "rules of other programs stay in the kernel and see no packet with a mark of the backend; a purge removes everything of the backend",
		Run: func(c *C) {
			c.Serve(30080)
			c.NoError(c.Gateway.Process.Close(c.ctx, true))
			c.Gateway.Process.Stop()
			c.NoError(c.Gateway.AddForeignRules())
			before, err := c.Gateway.Footprint()
			c.NoError(err)
			c.Gateway.Start()
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 81, 30081, "all")}
			pools := []model.Pool{c.Pool("all", 0, 1), c.Pool("none")}
			c.Gateways[1].Apply(model.Snapshot{Pools: pools, Frontends: frontends})
			if slices.Contains(c.Description.Features, dataplane.Redirects) {
				frontends[0].Redirect = model.Redirect{Next: c.frontAddress(1), Limit: 1}
			}
			c.Gateway.Apply(model.Snapshot{Pools: pools, Frontends: frontends})
			c.routeVIPsTo(1)
			unknown := c.openStreams(5)
			c.routeVIPsTo(0)
			for _, s := range unknown {
				_ = s.Alive() // the other gateway knows it, if this one redirects
			}
			for _, network := range networks {
				c.Request(20, network, c.At(1, 80))
			}
			// For connection tracking, each datagram without an answer is new.
			unanswered, err := c.Lab.A.Dial("udp", c.At(1, 81), from(0))
			c.NoError(err)
			for range 5 {
				_, _ = unanswered.Write([]byte("?"))
			}
			c.NoError(unanswered.Close())
			marked, err := c.Gateway.MarkedPackets()
			c.NoError(err)
			c.Zero(marked, "packets with a mark came to rules of other programs")
			c.NoError(c.Gateway.Process.Close(c.ctx, true))
			c.Gateway.Process.Stop()
			_, err = c.Lab.A.Request("tcp", c.At(1, 80), from(0))
			c.Error(err)
			after, err := c.Gateway.Footprint()
			c.NoError(err)
			c.Equal(before, after)
		},
	}
}
