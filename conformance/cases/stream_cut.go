package cases

import (
	"context"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func streamCut() Case {
	return Case{
		Name:      "stream-cut",
		Shows:     "a change that is cut off on its way leaves each record as it was or as it shall be, and can be sent again",
		OneFamily: true,
		Run: func(c *C) {
			c.Serve(30080)
			mine := c.Frontend(model.TCP, 1, 80, 30080, "all")
			before := model.Snapshot{Pools: []model.Pool{c.Pool("all", 0)}, Frontends: []model.Frontend{mine}}
			c.Gateway.Apply(before)
			load := c.Load("tcp", c.At(1, 80))
			after := c.manyFrontends(before, 3000)
			for _, cutAfter := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
				held, err := c.Gateway.Process.Applied(c.ctx)
				c.NoError(err)
				cut, cancel := context.WithTimeout(c.ctx, c.Patience.For(cutAfter))
				_, _ = c.Gateway.Process.Apply(cut, dataplane.Change{Base: held.Generation, Next: c.Gateway.generation(), Delta: model.Difference(held.Digests, after)})
				cancel()
				c.oldOrNew(before, after)
			}
			c.Gateway.Apply(after)
			c.Equal(map[int]int{0: 3}, c.Ask(3, "tcp", c.At(2, 1+2999)))
			c.Positive(load.Stop())
		},
	}
}

// manyFrontends adds n frontends on the second address, from port 1 on.
func (c *C) manyFrontends(to model.Snapshot, n int) model.Snapshot {
	for i := range n {
		to.Frontends = append(to.Frontends, c.Frontend(model.TCP, 2, uint16(1+i), 30080, "all"))
	}
	return to
}

// oldOrNew requires that everything held is of one snapshot or the other, and that what both have is held.
func (c *C) oldOrNew(before, after model.Snapshot) {
	held, err := c.Gateway.Process.Applied(c.ctx)
	c.NoError(err)
	old, new := before.Digests(), after.Digests()
	for key, digest := range held.Frontends {
		c.True(digest == old.Frontends[key] || digest == new.Frontends[key], "frontend %s is neither the old nor the new one", key)
	}
	for id, digest := range held.Pools {
		c.True(digest == old.Pools[id] || digest == new.Pools[id], "pool %s is neither the old nor the new one", id)
	}
	for key, digest := range old.Frontends {
		if new.Frontends[key] == digest {
			c.Equal(digest, held.Frontends[key], "frontend %s is lost", key)
		}
	}
}
