package backlog

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"kubelb.k8c.io/core/model"
)

func pool(tenant, name string, endpoints int) model.Pool {
	return model.Pool{ID: model.PoolID(tenant + "/" + name), Tenant: tenant, Endpoints: make([]model.Endpoint, endpoints)}
}

func frontend(tenant string, vip byte, port int) model.Frontend {
	return model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.AddrFrom4([4]byte{203, 0, 113, vip}), Protocol: model.TCP, Port: uint16(port)}, Tenant: tenant, Pool: model.PoolID(tenant + "/p")}
}

// service is a LoadBalancer's pool and ports.
func service(tenant string, vip byte, ports int) (d model.Delta) {
	d.UpsertPools = []model.Pool{pool(tenant, "p", 1)}
	for port := range ports {
		d.UpsertFrontends = append(d.UpsertFrontends, frontend(tenant, vip, 1+port))
	}
	return d
}

// fakeDataplane holds what it was sent. A frontend without its pool is an error.
type fakeDataplane struct {
	*testing.T
	pools     map[model.PoolID]bool
	frontends map[model.FrontendKey]model.PoolID
}

func (t *fakeDataplane) take(d model.Delta) {
	t.Helper()
	for _, p := range d.UpsertPools {
		t.pools[p.ID] = true
	}
	for _, f := range d.UpsertFrontends {
		if !t.pools[f.Pool] {
			t.Errorf("frontend %s comes before its pool %s", f.FrontendKey, f.Pool)
		}
		t.frontends[f.FrontendKey] = f.Pool
	}
	for _, key := range d.DeleteFrontends {
		delete(t.frontends, key)
	}
	for _, id := range d.DeletePools {
		for key, on := range t.frontends {
			if on == id {
				t.Errorf("pool %s is deleted while frontend %s uses it", id, key)
			}
		}
		delete(t.pools, id)
	}
}

func newFakeDataplane(t *testing.T) *fakeDataplane {
	return &fakeDataplane{t, map[model.PoolID]bool{}, map[model.FrontendKey]model.PoolID{}}
}

// none is a newFakeDataplane that refuses no frontend.
func none(model.FrontendKey) bool { return false }

func behind(b *Backlog) map[string]uint64 {
	of, _ := b.Behind()
	return of
}

func TestASmallChangeIsOneBatch(t *testing.T) {
	b := New()
	b.Add(service("a", 1, 3), 0)
	b.Add(model.Delta{DeleteFrontends: []model.FrontendKey{frontend("b", 2, 80).FrontendKey}, DeletePools: []model.PoolID{"b/p"}}, 0)
	got := b.Next(10)
	if len(got.UpsertPools) != 1 || len(got.UpsertFrontends) != 3 || len(got.DeleteFrontends) != 1 || len(got.DeletePools) != 1 || !b.Empty() {
		t.Errorf("%+v", got)
	}
	if !b.Next(10).Empty() {
		t.Error("an empty backlog returns records")
	}
}

func TestATenantWithFewRecordsIsInTheFirstBatch(t *testing.T) {
	b := New()
	for i := range 4 {
		d := service("hostile", byte(1+i), 256)
		d.UpsertPools[0].Endpoints = make([]model.Endpoint, 5)
		b.Add(d, 0)
	}
	b.Add(service("a", 10, 2), 0)
	b.Add(service("b", 11, 1), 0)
	got := b.Next(20)
	tenants := map[string]int{}
	for _, f := range got.UpsertFrontends {
		tenants[f.Tenant]++
	}
	if tenants["a"] != 2 || tenants["b"] != 1 || got.Len() > 20 {
		t.Errorf("%v of %d records", tenants, got.Len())
	}
	// A new tenant is in the next batch, whatever is left.
	b.Add(service("c", 12, 1), 0)
	if got := b.Next(20); !slices.ContainsFunc(got.UpsertFrontends, func(f model.Frontend) bool { return f.Tenant == "c" }) {
		t.Errorf("%+v", got)
	}
}

func TestTenantsTakeTurnsByCost(t *testing.T) {
	b := New()
	for i := range 5 {
		b.Add(model.Delta{UpsertPools: []model.Pool{pool("large", fmt.Sprint(i), 5000)}}, 0)
	}
	for i := range 100 {
		b.Add(model.Delta{UpsertPools: []model.Pool{pool("small", fmt.Sprint(i), 1)}}, 0)
	}
	order := ""
	for !b.Empty() {
		for _, p := range b.Next(500).UpsertPools {
			if order += p.Tenant[:1]; p.Tenant == "large" && len(order) > 1 && len(order) < 101 {
				t.Fatalf("a second large pool before all small ones: %s", order)
			}
		}
	}
	if len(order) != 105 {
		t.Error(order)
	}
}

func TestBatchesAreBoundedAndInOrder(t *testing.T) {
	b, d := New(), newFakeDataplane(t)
	for i := range 20 {
		b.Add(service(fmt.Sprint("t", i), byte(i), 10*i), 0)
	}
	batches, records := 0, 0
	for ; !b.Empty(); batches++ {
		batch := b.Next(100)
		if cost := batch.Len() + len(batch.UpsertPools); cost > 100 {
			t.Errorf("batch of %d", cost)
		}
		records += batch.Len()
		d.take(batch)
	}
	if want := 20 + 10*190; records != want || batches > 25 {
		t.Errorf("%d records in %d batches, want %d", records, batches, want)
	}
}

func TestAPoolIsDeletedWhenNoFrontendUsesIt(t *testing.T) {
	b, d := New(), newFakeDataplane(t)
	b.Add(service("a", 1, 50), 0)
	first := b.Next(1000)
	d.take(first)
	b.MarkAnswered(first, none)
	// All ports move to another tenant, and the pool goes.
	move := service("b", 1, 50)
	move.DeletePools = []model.PoolID{"a/p"}
	b.Add(move, 0)
	for !b.Empty() {
		d.take(b.Next(7))
	}
	if d.pools["a/p"] || len(d.frontends) != 50 {
		t.Errorf("%v", d)
	}
}

func TestALaterRecordReplacesAnEarlierOne(t *testing.T) {
	b := New()
	b.Add(service("a", 1, 1), 0)
	key, vip := frontend("a", 1, 1).FrontendKey, frontend("a", 1, 1).VIP
	if !b.Has(key) || !b.HasUpsertFor(vip) {
		t.Error("the frontend does not wait to be set")
	}
	b.Add(model.Delta{DeleteFrontends: []model.FrontendKey{key}}, 0)
	if !b.Has(key) || b.HasUpsertFor(vip) {
		t.Error("the frontend does not wait to be deleted")
	}
	got := b.Next(10)
	if len(got.UpsertFrontends) != 0 || len(got.DeleteFrontends) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestEarlierRecordsDoNotWaitForLaterOnes(t *testing.T) {
	b := New()
	at := b.Add(service("a", 1, 30), 0)
	for range 10 {
		b.Add(service("a", 1, 3), 0)  // earlier records again
		b.Add(service("b", 2, 30), 0) // another tenant's records
		b.Next(20)
	}
	if !b.HasReturned(at) || b.Empty() {
		t.Error("earlier records wait for later ones")
	}
}

func TestRecordsOfAFailedBatchComeAloneAndLast(t *testing.T) {
	b, d := New(), newFakeDataplane(t)
	b.Add(service("hostile", 1, 5), 0)
	failed := b.Next(100)
	if b.AreSuspects(failed) {
		t.Error("a batch that has not failed is suspected")
	}
	b.MarkFailed(failed)
	b.Clear() // as for a plugin that starts again
	b.Add(service("hostile", 1, 5), 0)
	b.Add(service("a", 2, 5), 0)
	first := b.Next(100)
	if d.take(first); len(first.UpsertFrontends) != 5 || first.UpsertFrontends[0].Tenant != "a" {
		t.Errorf("%+v", first)
	}
	for range 6 {
		one := b.Next(100)
		if d.take(one); one.Len() != 1 || !b.AreSuspects(one) {
			t.Errorf("%+v", one)
		}
		b.MarkAnswered(one, none)
	}
	b.Add(service("hostile", 1, 5), 0)
	if got := b.Next(100); got.Len() != 6 {
		t.Errorf("records that were applied are still suspected: %+v", got)
	}
}

func TestBehindNamesTenantsWithTheVersionThatTheDataplaneHolds(t *testing.T) {
	b := New()
	b.Add(service("hostile", 1, 50), 3)
	b.Add(service("hostile", 2, 50), 4)
	b.Add(service("a", 3, 1), 4)
	if got := behind(b); len(got) != 2 || got["hostile"] != 3 || got["a"] != 4 {
		t.Errorf("%v", got)
	}
	b.Next(20)
	if got := behind(b); len(got) != 1 || got["hostile"] != 3 {
		t.Errorf("want hostile only, since the newFakeDataplane holds all of a: %v", got)
	}
	b.Clear()
	b.Add(service("hostile", 2, 50), 9)
	if got := behind(b); len(got) != 1 || got["hostile"] != 3 {
		t.Errorf("a new difference raised the version that the newFakeDataplane holds: %v", got)
	}
	b.SetVersion(9)
	if got := behind(b); got["hostile"] != 9 {
		t.Errorf("%v", got)
	}
}

func TestARestartedDataplaneHoldsVersion0OfATenantWithRecords(t *testing.T) {
	b := New()
	b.Add(service("a", 1, 50), 3)
	b.Next(20)
	b.Clear()
	b.Add(service("a", 1, 50), 0)
	b.Add(service("a", 2, 1), 4)
	if got := behind(b); len(got) != 1 || got["a"] != 0 {
		t.Errorf("a newFakeDataplane that was restarted keeps the version that it held before: %v", got)
	}
	b.SetVersion(4)
	if got := behind(b); got["a"] != 4 {
		t.Errorf("%v", got)
	}
}

func TestATenantsPoolIsDeletedWhateverOtherTenantsHave(t *testing.T) {
	b, d := New(), newFakeDataplane(t)
	first := service("a", 1, 1)
	b.Add(first, 0)
	d.take(b.Next(100))
	b.MarkAnswered(first, none)
	b.Add(service("hostile", 2, 1000), 1)
	b.Add(model.Delta{DeleteFrontends: []model.FrontendKey{frontend("a", 1, 1).FrontendKey}, DeletePools: []model.PoolID{"a/p"}}, 1)
	if d.take(b.Next(20)); d.pools["a/p"] || behind(b)["a"] != 0 || len(behind(b)) != 1 {
		t.Errorf("a waits for records of hostile: %v", behind(b))
	}
}

func TestAPoolWaitsForFrontendsThatTheDataplaneMayHaveOnIt(t *testing.T) {
	for name, answered := range map[string]bool{"the newFakeDataplane answered": true, "the newFakeDataplane did not answer": false} {
		t.Run(name, func(t *testing.T) {
			b, d := New(), newFakeDataplane(t)
			first, move := service("a", 1, 50), service("b", 1, 50)
			b.Add(first, 0)
			if d.take(b.Next(1000)); answered {
				b.MarkAnswered(first, none)
			}
			b.Add(move, 0)
			b.Next(1000) // the newFakeDataplane does not apply it
			b.Clear()
			move.DeletePools = []model.PoolID{"a/p"}
			for b.Add(move, 0); !b.Empty(); {
				d.take(b.Next(7))
			}
		})
	}
}

func TestAFrontendFromBeforeBelongsToItsKnownTenant(t *testing.T) {
	b := New()
	known, unknown := frontend("a", 1, 1).FrontendKey, frontend("", 2, 1).FrontendKey
	b.AddHeld(known, "a")
	b.Add(model.Delta{DeleteFrontends: []model.FrontendKey{known}}, 3)
	if of, all := b.Behind(); !all || of["a"] != 3 {
		t.Errorf("%v, %v", of, all)
	}
	b.AddHeldOfUnknownTenant(unknown)
	b.Add(model.Delta{DeleteFrontends: []model.FrontendKey{unknown}}, 3)
	if _, all := b.Behind(); all {
		t.Error("all tenants are known although one is unknown")
	}
	b.Next(10)
	if of, all := b.Behind(); !all || len(of) != 0 {
		t.Errorf("%v, %v", of, all)
	}
}

func TestARefusedFrontendDoesNotStayWithTheFormerTenant(t *testing.T) {
	b := New()
	key := frontend("a", 1, 1).FrontendKey
	step := func(d model.Delta, refused bool) []model.FrontendKey {
		b.Add(d, 0)
		return b.MarkAnswered(b.Next(100), func(model.FrontendKey) bool { return refused })
	}
	step(service("a", 1, 1), false)
	if others := step(service("a", 1, 1), true); len(others) != 0 {
		t.Error("a refused frontend of the same tenant is to be deleted")
	}
	if others := step(service("b", 1, 1), true); !slices.Equal(others, []model.FrontendKey{key}) {
		t.Error("clients of b would still reach endpoints of a")
	}
	step(model.Delta{DeleteFrontends: []model.FrontendKey{key}}, false)
	if others := step(service("b", 1, 1), true); len(others) != 0 {
		t.Error("a deleted frontend is to be deleted again")
	}
}

func TestASuspectIsSentWhateverOtherRecordsWait(t *testing.T) {
	b := New()
	mixed := service("a", 1, 1)
	mixed.UpsertFrontends = append(mixed.UpsertFrontends, service("hostile", 2, 1).UpsertFrontends...)
	mixed.UpsertPools = append(mixed.UpsertPools, service("hostile", 2, 1).UpsertPools...)
	b.Add(mixed, 0)
	b.MarkFailed(b.Next(100))
	b.Clear()
	b.Add(mixed, 0)
	for i := range 2*SuspectDelay*3 + 1 {
		b.Add(service("hostile", 3, 300), uint64(i)) // other records always wait
		b.MarkAnswered(b.Next(100), none)
		if _, waits := behind(b)["a"]; !waits {
			return
		}
	}
	t.Errorf("a waits as long as hostile adds records: %v", behind(b))
}

func TestANewTenantOfAnAddressIsNotSuspectedForTheFormerOne(t *testing.T) {
	b := New()
	b.Add(service("hostile", 1, 1), 0)
	b.MarkFailed(b.Next(100))
	b.Clear()
	b.Add(service("a", 1, 1), 0)
	if got := b.Next(100); got.Len() != 2 {
		t.Errorf("%+v", got)
	}
}

// The time that Next takes depends on the records that it returns, not on those that wait.
func BenchmarkNext(b *testing.B) {
	for _, ports := range []int{1_000, 250_000} {
		b.Run(fmt.Sprint(ports), func(b *testing.B) {
			log := New()
			d := model.Delta{}
			for i := range ports {
				f := frontend("hostile", byte(i>>16), i&0xffff)
				d.UpsertFrontends = append(d.UpsertFrontends, f)
			}
			log.Add(d, 0)
			for b.Loop() {
				log.Add(service("a", 10, 1), 0)
				batch := log.Next(500)
				batch.UpsertFrontends = slices.DeleteFunc(batch.UpsertFrontends, func(f model.Frontend) bool { return f.Tenant == "a" })
				log.Add(model.Delta{UpsertFrontends: batch.UpsertFrontends}, 0)
			}
		})
	}
}
