package cases

import "kubelb.k8c.io/core/model"

func badRecords() Case {
	return Case{
		Name:  "bad-records",
		Shows: "the result names a record that the backend refuses, with a reason; other records are not affected",
		Run: func(c *C) {
			c.Serve(30080)
			good, orphan := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 2, 80, 30080, "missing")
			for _, g := range c.Gateways {
				result, _, err := g.TryApply(model.Snapshot{Pools: []model.Pool{c.Pool("all", 0)}, Frontends: []model.Frontend{good, orphan}})
				c.NoError(err)
				c.Len(result.Failed, 1)
				c.Equal(orphan.FrontendKey, result.Failed[0].Frontend)
				c.NotEmpty(result.Failed[0].Message)
				held, err := g.Process.Applied(c.ctx)
				c.NoError(err)
				c.Contains(held.Frontends, good.FrontendKey)
				c.NotContains(held.Frontends, orphan.FrontendKey)
			}
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(1, 80)))
			// The backend takes the frontend once its pool exists.
			orphan.Pool = good.Pool
			c.Apply([]model.Pool{c.Pool("all", 0)}, good, orphan)
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(2, 80)))
		},
	}
}
