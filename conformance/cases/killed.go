package cases

import (
	"time"

	"kubelb.k8c.io/core/model"
)

func killedDuringApply() Case {
	return Case{
		Name:      "killed-during-apply",
		Shows:     "killed in the middle of a change, the backend loses no connection and no flow; its successor takes over what it finds",
		OneFamily: true,
		Run: func(c *C) {
			c.Serve(30080)
			mine := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			before := model.Snapshot{Pools: []model.Pool{c.Pool("all", 0, 1)}, Frontends: mine}
			c.Gateway.Apply(before)
			streams, flows := c.streams(5), c.flows(5)
			load := c.Load("tcp", c.At(1, 80))
			after := c.manyFrontends(before, 3000)
			for i := range 4 {
				killed := make(chan error, 1)
				time.AfterFunc(c.Patience.For(time.Duration(i)*8*time.Millisecond), func() { killed <- c.Gateway.Process.Kill() })
				_, _, _ = c.Gateway.TryApply(after)
				c.NoError(<-killed)
				c.alive(streams, flows)
				c.Gateway.Start()
				c.oldOrNew(before, after)
			}
			c.Gateway.Apply(after)
			c.alive(streams, flows)
			c.Ask(3, "tcp", c.At(2, 3000))
			c.Positive(load.Stop())
		},
	}
}
