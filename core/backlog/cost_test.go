package backlog

import (
	"fmt"
	"testing"

	"kubelb.k8c.io/core/maglev"
	"kubelb.k8c.io/core/model"
)

// rows counts the rows that a newFakeDataplane writes or removes for the pools of a batch. has are the rows that it holds.
func rows(d model.Delta, has map[model.PoolID]int) (n int) {
	for _, p := range d.UpsertPools {
		n += max(maglev.Size(p.Endpoints), has[p.ID])
		has[p.ID] = maglev.Size(p.Endpoints)
	}
	for _, id := range d.DeletePools {
		n += has[id]
		delete(has, id)
	}
	return n
}

// far returns a pool of two endpoints whose weights are as far apart as possible. Its table is the largest.
func far(i int) model.Pool {
	p := pool("hostile", fmt.Sprint(i), 2)
	p.Endpoints[0].Weight, p.Endpoints[1].Weight = 1, 65535
	return p
}

func TestABatchHasFewRowsWhateverWeightsTheEndpointsHave(t *testing.T) {
	const pools, cost = 200, 500
	b, has, largest := New(), map[model.PoolID]int{}, maglev.Size(far(0).Endpoints)
	var set, even, gone model.Delta
	for i := range pools {
		set.UpsertPools = append(set.UpsertPools, far(i))
		even.UpsertPools = append(even.UpsertPools, pool("hostile", fmt.Sprint(i), 2))
		gone.DeletePools = append(gone.DeletePools, far(i).ID)
	}
	for _, change := range []model.Delta{set, even, set, gone} {
		b.Add(change, 0)
		b.Add(service("a", 10, 2), 0)
		for before := 0; !b.Empty(); {
			batch := b.Next(cost)
			n := rows(batch, has)
			if n > largest {
				t.Fatalf("a batch of %d records has %d rows", batch.Len(), n)
			}
			if before += n; len(batch.UpsertFrontends) > 0 && before > 2*largest {
				t.Fatalf("another tenant waits for %d rows", before)
			}
		}
	}
	if len(has) != 1 || len(b.poolCosts) != 1 {
		t.Errorf("costs of deleted pools are kept: %v, %v", has, b.poolCosts)
	}
}

func TestDeletingAPoolFromBeforeCostsAsMuchAsThePool(t *testing.T) {
	b := New()
	b.AddHeldPool(far(1))
	b.AddHeldPool(far(2))
	b.Add(model.Delta{DeletePools: []model.PoolID{far(1).ID, far(2).ID}}, 0)
	if d := b.Next(500); len(d.DeletePools) != 1 {
		t.Errorf("%+v", d)
	}
}

func TestWithEvenWeightsEachEndpointCostsOne(t *testing.T) {
	for n := range 6000 {
		p := pool("a", "p", n)
		for i := range p.Endpoints {
			p.Endpoints[i].Weight = 1
		}
		if cost := costOf(p); cost != 1+n {
			t.Fatalf("%d endpoints cost %d", n, cost)
		}
	}
}

func TestQueuesStayShortHoweverOftenRecordsChange(t *testing.T) {
	length := func(b *Backlog) (n int) {
		for _, q := range b.tenants["a"].queues {
			n += len(q)
		}
		return n
	}
	b, set := New(), service("a", 1, 400)
	b.Add(set, 0)
	b.Add(service("a", 2, 400), 0)
	late := set.UpsertFrontends[200:]
	for range 50 {
		b.Add(model.Delta{UpsertFrontends: late}, 0)
	}
	if n := length(b); n != 801 {
		t.Errorf("801 records are %d in queues", n)
	}
	var gone model.Delta
	for _, f := range late {
		gone.DeleteFrontends = append(gone.DeleteFrontends, f.FrontendKey)
	}
	for range 50 {
		b.Add(gone, 0)
		b.Add(model.Delta{UpsertFrontends: late}, 0)
	}
	if n := length(b); n > 2*(2*801+maxRemoved) {
		t.Errorf("801 records are %d in queues", n)
	}
	dealt := map[model.FrontendKey]bool{}
	for !b.Empty() {
		for _, f := range b.Next(100).UpsertFrontends {
			if dealt[f.FrontendKey] {
				t.Errorf("%s is dealt twice", f.FrontendKey)
			}
			dealt[f.FrontendKey] = true
		}
	}
	if len(dealt) != 800 {
		t.Errorf("of 800 frontends %d are dealt", len(dealt))
	}
}
