package cases

import (
	"kubelb.k8c.io/core/model"
)

func restart() Case {
	return Case{
		Name:  "restart",
		Shows: "traffic continues while the backend is stopped, killed or upgraded; its successor reports the same digests, so that only differences are sent",
		Run: func(c *C) {
			c.Serve(30080)
			want := model.Snapshot{
				Pools:     []model.Pool{c.Pool("all", 0, 1), c.Pool("none")},
				Frontends: []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "none")},
			}
			c.Gateway.Apply(want)
			streams, flows, before := c.openStreams(5), c.openFlows(5), c.endpointsOf(100)
			stop, kill := func() { c.Gateway.Process.Stop() }, func() { c.NoError(c.Gateway.Process.Kill()) }
			for _, change := range []struct{ end, begin func() }{{stop, c.Gateway.Start}, {kill, c.Gateway.Start}, {stop, c.Gateway.Upgrade}} {
				change.end()
				c.requireAlive(streams, flows)
				c.Equal(before, c.endpointsOf(100), "while the backend does not run")
				c.MustRefuse("tcp", c.At(1, 81))
				change.begin()
				c.True(c.Gateway.Apply(want).Empty(), "a change is sent although nothing differs")
				c.Equal(before, c.endpointsOf(100), "with the successor")
			}
			c.requireAlive(streams, flows)
			want.Pools[0] = c.Pool("all", 2)
			want.Frontends = want.Frontends[:2]
			change := c.Gateway.Apply(want)
			c.Len(change.UpsertPools, 1)
			c.Empty(change.UpsertFrontends)
			c.Len(change.DeleteFrontends, 1)
			c.Equal(map[int]int{2: 5}, c.Request(5, "tcp", c.At(1, 80)))
			c.MustRefuse("tcp", c.At(1, 81))
		},
	}
}
