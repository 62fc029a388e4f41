package cases

import (
	"time"

	"kubelb.k8c.io/core/model"
)

func killedDuringApply() Case {
	return Case{
		Name:      "killed-during-apply",
		Shows:     "a backend that is killed during a change loses no connection and no flow; its successor adopts what it finds",
		OneFamily: true,
		Run: func(c *C) {
			c.Serve(30080)
			used := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all")}
			before := model.Snapshot{Pools: []model.Pool{c.Pool("all", 0, 1)}, Frontends: used}
			c.Gateway.Apply(before)
			streams, flows := c.openStreams(5), c.openFlows(5)
			load := c.Load("tcp", c.At(1, 80))
			after := c.manyFrontends(before, 3000)
			for i := range 4 {
				killed := make(chan error, 1)
				time.AfterFunc(c.Patience.For(time.Duration(i)*8*time.Millisecond), func() { killed <- c.Gateway.Process.Kill() })
				_, _, _ = c.Gateway.TryApply(after)
				c.NoError(<-killed)
				c.requireAlive(streams, flows)
				c.Gateway.Start()
				c.requireOldOrNew(before, after)
			}
			c.Gateway.Apply(after)
			c.requireAlive(streams, flows)
			c.Request(3, "tcp", c.At(2, 3000))
			c.Positive(load.Stop())
		},
	}
}
