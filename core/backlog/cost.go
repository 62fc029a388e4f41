package backlog

import (
	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// rowsOfEndpoint are as many rows of a pool's table as an endpoint has at most where all weights are equal. Where they are far apart two endpoints
// have more than a hundred thousand, and dataplanes write them one by one.
const rowsOfEndpoint = 256

// costOf is how many elements a pool is, roughly.
func costOf(p model.Pool) int {
	return 1 + max(len(p.Endpoints), maglev.Size(p.Endpoints)/rowsOfEndpoint)
}

// price is what the record costs. To change or delete a pool costs no less than to write what the dataplane has of it.
func (b *Backlog) price(r *record) int {
	if !r.ofPool() {
		return 1
	}
	return max(costOf(r.pool), b.weighs[r.pool.ID])
}

// HoldsPool notes that the dataplane has the pool.
func (b *Backlog) HoldsPool(p model.Pool) { b.weighs[p.ID] = costOf(p) }
