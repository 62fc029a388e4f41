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
		Shows:    "what others have in the kernel is untouched, their rules see no mark of ours, and after a purge nothing of ours is left",
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
			if slices.Contains(c.Description.Features, dataplane.Handover) {
				frontends[0].Handover = model.Handover{Next: c.frontOf(1), Asks: 1}
			}
			c.Gateway.Apply(model.Snapshot{Pools: pools, Frontends: frontends})
			c.leadTo(1)
			strangers := c.streams(5)
			c.leadTo(0)
			for _, s := range strangers {
				_ = s.Alive() // known to the other gateway, if this one asks
			}
			for _, network := range networks {
				c.Ask(20, network, c.At(1, 80))
			}
			// Datagrams that nobody answers are each new to connection tracking.
			silent, err := c.Lab.A.Dial("udp", c.At(1, 81), from(0))
			c.NoError(err)
			for range 5 {
				_, _ = silent.Write([]byte("?"))
			}
			c.NoError(silent.Close())
			marked, err := c.Gateway.MarkedPackets()
			c.NoError(err)
			c.Zero(marked, "packets that came to somebody else's rule with a mark")
			c.NoError(c.Gateway.Process.Close(c.ctx, true))
			c.Gateway.Process.Stop()
			_, err = c.Lab.A.Ask("tcp", c.At(1, 80), from(0))
			c.Error(err)
			after, err := c.Gateway.Footprint()
			c.NoError(err)
			c.Equal(before, after)
		},
	}
}
