package backlog

import (
	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// rowsPerEndpoint is how many rows of a pool's table an endpoint has at most if all weights are equal. With weights far apart two endpoints have
// more than a hundred thousand rows, which dataplanes write one by one.
const rowsPerEndpoint = 256

// costOf estimates how many elements a dataplane writes for a pool.
func costOf(p model.Pool) int {
	return 1 + max(len(p.Endpoints), maglev.Size(p.Endpoints)/rowsPerEndpoint)
}

// recordCost returns the cost of a record. To change or delete a pool costs at least as much as the pool that the dataplane holds.
func (b *Backlog) recordCost(r *record) int {
	if !r.isPool() {
		return 1
	}
	return max(costOf(r.pool), b.poolCosts[r.pool.ID])
}

// AddHeldPool notes that the dataplane holds the pool.
func (b *Backlog) AddHeldPool(p model.Pool) { b.poolCosts[p.ID] = costOf(p) }
