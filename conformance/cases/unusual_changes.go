package cases

import (
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func unusualChanges() Case {
	return Case{
		Name: "unusual-changes",
		Shows: "a delete of an absent record is no error and has no effect; of several upserts of one key in one change the last one counts; " +
			"a key in upserts and deletes of one change is gone afterwards; all others are served",
		Run: func(c *C) {
			c.Serve(30080)
			c.Serve(30081)
			used := model.Snapshot{Pools: []model.Pool{c.Pool("all", 0), c.Pool("all2", 1)}, Frontends: []model.Frontend{
				c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 2, 80, 30080, "all2")}}
			c.applySnapshot(used)
			streams, flows := c.openStreams(3), c.openFlows(3)
			unharmed := func(want model.Snapshot) {
				c.requireHeld(want)
				c.requireAlive(streams, flows)
				for _, network := range networks {
					c.Equal(map[int]int{0: 3}, c.Request(3, network, c.At(1, 80)), network)
				}
			}
			c.deletesOfAbsent(func() { unharmed(used) })

			// The last upsert counts, whatever was held before, and even if a former one is invalid.
			last := c.Frontend(model.UDP, 2, 80, 30081, "twice")
			former, invalid := last, last
			former.TargetPort, former.Pool, invalid.TargetPort = 30080, c.PoolID(tenant, "all"), 0
			c.mustChange(model.Delta{UpsertPools: []model.Pool{c.Pool("twice", 3), c.Pool("twice"), c.Pool("twice", 2)}, UpsertFrontends: []model.Frontend{former, invalid, last}})
			with := model.Snapshot{Pools: append(used.Pools, c.Pool("twice", 2)), Frontends: append(used.Frontends, last)}
			unharmed(with)
			c.Equal(map[int]int{2: 3}, c.Request(3, "udp", c.At(2, 80)), "the last of several upserts")
			c.mustChange(model.Delta{UpsertPools: []model.Pool{c.Pool("twice", 0), c.Pool("twice", 2)}, UpsertFrontends: []model.Frontend{former, last}})
			unharmed(with)
			c.Equal(map[int]int{2: 3}, c.Request(3, "udp", c.At(2, 80)), "the last of several upserts of a record that is held")

			// A delete wins, whether the record was held or not.
			for _, absent := range []bool{false, true} {
				c.mustChange(model.Delta{UpsertPools: []model.Pool{c.Pool("twice", 3)}, UpsertFrontends: []model.Frontend{former},
					DeleteFrontends: []model.FrontendKey{last.FrontendKey}, DeletePools: []model.PoolID{c.PoolID(tenant, "twice")}})
				unharmed(used)
				c.MustRefuse("udp", c.At(2, 80))
				c.Equal(map[int]int{1: 3}, c.Request(3, "tcp", c.At(2, 80)), "the frontend with the same port over TCP; the deleted one was absent: %v", absent)
			}
			c.Apply(with.Pools, with.Frontends...)
			c.Equal(map[int]int{2: 3}, c.Request(3, "udp", c.At(2, 80)), "the record is added again")
			_, err := c.Lab.B.Request("udp", c.At(2, 80), lab.From{})
			c.NoError(err)
		},
	}
}

// deletesOfAbsent deletes records that the dataplane does not hold, and that resemble held ones.
func (c *C) deletesOfAbsent(unharmed func()) {
	key := func(protocol model.Protocol, vip int, port uint16) model.FrontendKey {
		return model.FrontendKey{VIP: c.VIP(vip), Protocol: protocol, Port: port}
	}
	keys := []model.FrontendKey{key(model.TCP, 1, 81), key(model.UDP, 2, 80), key(model.TCP, 3, 80), key(model.UDP, 1, 20480), {VIP: lab.VIP(!c.V4, 1), Protocol: model.TCP, Port: 80}}
	ids := []model.PoolID{tenant + "/all", c.PoolID(tenant, "all3"), "all", c.PoolID(otherTenant, "all"), tenant + "/"}
	for _, key := range keys {
		c.mustChange(model.Delta{DeleteFrontends: []model.FrontendKey{key}})
	}
	for _, id := range ids {
		c.mustChange(model.Delta{DeletePools: []model.PoolID{id}})
	}
	unharmed()
	c.mustChange(model.Delta{DeleteFrontends: append(keys, keys...), DeletePools: append(ids, ids...)})
	unharmed()
}

// mustChange applies the delta, and requires that no record fails.
func (c *C) mustChange(d model.Delta) {
	result, err := c.Gateway.Change(d)
	c.NoError(err)
	c.Empty(result.Failed)
}
