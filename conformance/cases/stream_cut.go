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
		Shows:     "an interrupted change leaves each record as it was or as it should be, and can be sent again",
		OneFamily: true,
		Run: func(c *C) {
			c.Serve(30080)
			used := c.Frontend(model.TCP, 1, 80, 30080, "all")
			before := model.Snapshot{Pools: []model.Pool{c.Pool("all", 0)}, Frontends: []model.Frontend{used}}
			c.Gateway.Apply(before)
			load := c.Load("tcp", c.At(1, 80))
			after := c.manyFrontends(before, 3000)
			for _, cutAfter := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
				held, err := c.Gateway.Process.Applied(c.ctx)
				c.NoError(err)
				cut, cancel := context.WithTimeout(c.ctx, c.Patience.For(cutAfter))
				_, _ = c.Gateway.Process.Apply(cut, dataplane.Change{Base: held.Generation, Next: c.Gateway.generation(), Delta: model.Difference(held.Digests, after)})
				cancel()
				c.requireOldOrNew(before, after)
			}
			c.Gateway.Apply(after)
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(2, 1+2999)))
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

// requireOldOrNew requires that every held record is of one of the snapshots, or in an unknown state, and that frontends of both are held.
func (c *C) requireOldOrNew(before, after model.Snapshot) {
	held, err := c.Gateway.Process.Applied(c.ctx)
	c.NoError(err)
	old, new := before.Digests(), after.Digests()
	for key, digest := range held.Frontends {
		c.True(digest == "" || digest == old.Frontends[key] || digest == new.Frontends[key], "frontend %s is neither old nor new", key)
	}
	for id, digest := range held.Pools {
		c.True(digest == "" || digest == old.Pools[id] || digest == new.Pools[id], "pool %s is neither old nor new", id)
	}
	for key, digest := range old.Frontends {
		if new.Frontends[key] == digest {
			c.Equal(digest, held.Frontends[key], "frontend %s is lost", key)
		}
	}
}
