package cases

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func operations() Case {
	return Case{
		Name:      "operations",
		Shows:     "a change says what it cost: nothing if it is empty or refused, at least one object for each record that is added or deleted, and no more because other frontends are held",
		OneFamily: true,
		Run: func(c *C) {
			c.Gateway.Apply(model.Snapshot{Pools: []model.Pool{c.Pool("all", 0, 1)}})
			c.Zero(c.operations(model.Delta{}), "an empty change")
			c.Zero(c.operations(model.Delta{DeleteFrontends: keysOf(c.frontendsAt(9, 1)), DeletePools: []model.PoolID{c.PoolID(tenant, "absent")}}), "deletes of what is absent")
			one, deleted := c.costOf(c.frontendsAt(1, 1))
			c.Positive(one, "a frontend")
			c.Positive(deleted, "the delete of a frontend")
			ten, tenDeleted := c.costOf(c.frontendsAt(2, 10))
			c.GreaterOrEqual(ten, uint64(10), "ten frontends")
			c.GreaterOrEqual(tenDeleted, uint64(10), "deletes of ten frontends")
			c.Positive(c.operations(model.Delta{UpsertPools: []model.Pool{c.Pool("other", 0, 1)}}), "a pool")
			orphan := c.frontendsAt(9, 1)
			orphan[0].Pool = c.PoolID(tenant, "missing")
			c.Zero(c.operations(model.Delta{UpsertFrontends: orphan}), "a frontend that is refused")

			c.operations(model.Delta{UpsertFrontends: c.frontendsAt(3, 1000)})
			beside, besideDeleted := c.costOf(c.frontendsAt(1, 1))
			c.LessOrEqual(beside, one, "a frontend beside a thousand")
			c.LessOrEqual(besideDeleted, deleted, "the delete of a frontend beside a thousand")
			c.Measuref("operations to add a frontend: %d, ten: %d; to delete them: %d, %d", one, ten, deleted, tenDeleted)
		},
	}
}

// operations applies a delta and returns its operations. One frontend of it may be refused.
func (c *C) operations(d model.Delta) uint64 {
	held, err := c.Gateway.Process.Applied(c.ctx)
	c.NoError(err)
	result, err := c.Gateway.Process.Apply(c.ctx, dataplane.Change{Base: held.Generation, Next: c.Gateway.generation(), Delta: d})
	c.NoError(err)
	return result.Operations
}

// costOf returns the operations to add the frontends, and those to delete them.
func (c *C) costOf(frontends []model.Frontend) (added, deleted uint64) {
	return c.operations(model.Delta{UpsertFrontends: frontends}), c.operations(model.Delta{DeleteFrontends: keysOf(frontends)})
}

// frontendsAt returns n frontends at an address.
func (c *C) frontendsAt(vip, n int) (out []model.Frontend) {
	for i := range n {
		out = append(out, c.Frontend(model.TCP, vip, uint16(1000+i), 30080, "all"))
	}
	return out
}

func keysOf(frontends []model.Frontend) (keys []model.FrontendKey) {
	for _, f := range frontends {
		keys = append(keys, f.FrontendKey)
	}
	return keys
}
