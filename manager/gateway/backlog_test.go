package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// teller is a gateway with a dataplane that remembers what it is told, or does not take it.
func teller(t *testing.T, fails func(model.Delta) error) (*Gateway, *[]model.Delta) {
	t.Helper()
	g := New(Options{Name: "g", Announcer: board{}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	g.host, g.served = &host{description: dataplane.Description{Name: "test"}}, true
	var told []model.Delta
	g.apply = func(_ context.Context, d model.Delta) ([]dataplane.RecordError, error) {
		if err := fails(d); err != nil {
			return nil, err
		}
		told = append(told, d)
		return nil, nil
	}
	return g, &told
}

func takesAll(model.Delta) error { return nil }

// ports are those of a tenant's LoadBalancer.
func ports(tenant string, vip byte, n int) model.Delta {
	d := model.Delta{UpsertPools: []model.Pool{{ID: model.PoolID(tenant + "/p"), Tenant: tenant}}}
	for i := range n {
		d.UpsertFrontends = append(d.UpsertFrontends, model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.AddrFrom4([4]byte{203, 0, 113, vip}), Protocol: model.TCP, Port: uint16(1 + i)}, Tenant: tenant, Pool: model.PoolID(tenant + "/p")})
	}
	return d
}

func TestATenantsChangeIsNextHoweverMuchAnotherOneHas(t *testing.T) {
	g, told := teller(t, takesAll)
	g.take(ports("hostile", 1, 5*batchCost), 0)
	require.NoError(t, g.tell(t.Context()))
	require.Len(t, *told, 1)
	require.LessOrEqual(t, (*told)[0].Len(), batchCost)

	g.take(ports("a", 2, 2), 0)
	require.NoError(t, g.tell(t.Context()))
	a := ports("a", 2, 2).UpsertFrontends
	require.True(t, g.held[a[0].FrontendKey] && g.held[a[1].FrontendKey], "it is told, and may be answered for")
	require.Equal(t, []netip.Addr{a[0].VIP}, g.answering.fresh)
	for !g.backlog.Empty() {
		require.NoError(t, g.tell(t.Context()))
	}
	require.Len(t, *told, 6, "bounded, and not more than it needs")
	require.Contains(t, g.answering.fresh, netip.MustParseAddr("203.0.113.1"), "with its last port an address may be answered for")
}

func TestAnObjectSaysWhichTenantsAreBehindAndUpToWhere(t *testing.T) {
	g, _ := teller(t, takesAll)
	g.flushed = 4
	g.take(ports("hostile", 1, 2*batchCost), 3)
	g.take(ports("a", 2, 2), 3)
	require.NoError(t, g.tell(t.Context()))
	version, behind := g.applied()
	require.Equal(t, "4", version)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "3"}}, behind)
	for !g.backlog.Empty() {
		require.NoError(t, g.tell(t.Context()))
	}
	_, behind = g.applied()
	require.Empty(t, behind)
	for i := range maxBehind + 1 {
		g.take(ports(fmt.Sprint("t", i), 1, 1), 4)
	}
	version, _ = g.applied()
	require.Empty(t, version, "what cannot be named keeps the former version")
}

func TestWhatEndsTheBackendIsNotGivenToTheNextProcessWithAllElse(t *testing.T) {
	bad, does := ports("hostile", 1, 2).UpsertFrontends[1].FrontendKey, setsFrontend(ports("hostile", 1, 2).UpsertFrontends[1])
	ended := errors.New("the process ended")
	g, told := teller(t, func(d model.Delta) error {
		if slices.ContainsFunc(d.UpsertFrontends, func(f model.Frontend) bool { return f.FrontendKey == bad }) {
			return ended
		}
		return nil
	})
	// The next process holds what the former one has taken, and is told all else.
	next := func() {
		g.backlog.Clear()
		for _, d := range []model.Delta{ports("hostile", 1, 3), ports("a", 2, 3)} {
			for _, done := range *told {
				d = without(d, done)
			}
			g.take(d, 0)
		}
	}
	ends := 0
	for next(); !g.backlog.Empty(); {
		if g.tell(t.Context()) != nil {
			ends++
			next()
		}
	}
	require.Equal(t, 2, ends, "once with others, and once by itself")
	require.Len(t, g.fails, 1)
	require.Contains(t, g.fails["frontend "+bad.String()].message, "it is told again after")
	require.Equal(t, 5, len(g.held))

	for record, p := range g.postponed {
		p.until = time.Now()
		g.postponed[record] = p
	}
	next()
	require.ErrorIs(t, g.tell(t.Context()), ended, "it is tried again at its time, by itself")
	require.InDelta(t, 2*leastPostponed, time.Until(g.postponed[does].until), float64(time.Minute), "and waits for longer then")
}

func TestAPostponedRecordStaysAsTheDataplaneHoldsIt(t *testing.T) {
	p := postponed{}
	d := ports("a", 1, 2)
	record := setsFrontend(d.UpsertFrontends[0])
	p.add(record, time.Now())
	held := model.NewDigests()
	for _, f := range d.UpsertFrontends {
		held.Frontends[f.FrontendKey] = "of before"
	}
	kept, late := p.without(d, held, time.Now())
	difference := model.Difference(held, model.Snapshot{Pools: kept.UpsertPools, Frontends: kept.UpsertFrontends})
	require.Len(t, difference.UpsertFrontends, 1)
	require.Empty(t, difference.DeleteFrontends)
	require.Equal(t, record.record, late[0].Record())
	for range 20 {
		p.add(record, time.Now())
	}
	require.LessOrEqual(t, p[record].wait, mostPostponed)
}

func TestWhatTheBackendDoesNotSupportIsSaidWhenTheDataplaneHasLetGoOfIt(t *testing.T) {
	g, told := teller(t, takesAll)
	g.take(ports("a", 1, 2), 0)
	require.NoError(t, g.tell(t.Context()))
	change := ports("a", 1, 2).UpsertFrontends[:1]
	change[0].ProxyProtocol = true
	g.take(model.Delta{UpsertFrontends: change}, 0)
	for !g.backlog.Empty() {
		require.NoError(t, g.tell(t.Context()))
	}
	require.Equal(t, []model.FrontendKey{change[0].FrontendKey}, (*told)[1].DeleteFrontends)
	require.Contains(t, g.fails["frontend "+change[0].FrontendKey.String()].message, "does not support", fmt.Sprint(g.fails))
	g.take(ports("a", 1, 2), 0)
	require.NoError(t, g.tell(t.Context()))
	require.Empty(t, g.fails)
}

func TestWhatAFormerTenantOfAnAddressDidKeepsNobodyWaiting(t *testing.T) {
	ended := errors.New("the process ended")
	hostile, innocent := ports("hostile", 1, 1), ports("a", 1, 1)
	g, told := teller(t, func(d model.Delta) error {
		if len(d.UpsertFrontends) > 0 && d.UpsertFrontends[0].Tenant == "hostile" {
			return ended
		}
		return nil
	})
	for range 5 {
		g.backlog.Clear()
		g.take(hostile, 0)
		for !g.backlog.Empty() && g.tell(t.Context()) == nil {
		}
	}
	require.Len(t, g.postponed, 1)

	g.take(model.Delta{DeleteFrontends: []model.FrontendKey{hostile.UpsertFrontends[0].FrontendKey}}, 0)
	require.NoError(t, g.tell(t.Context()))
	require.Equal(t, []model.FrontendKey{hostile.UpsertFrontends[0].FrontendKey}, (*told)[len(*told)-1].DeleteFrontends, "what could not be changed can be deleted")
	g.take(innocent, 0)
	require.NoError(t, g.tell(t.Context()))
	require.Equal(t, innocent, (*told)[len(*told)-1])
	require.Empty(t, g.fails)

	held := model.NewDigests()
	held.Frontends[hostile.UpsertFrontends[0].FrontendKey] = "the former one's"
	kept, late := g.postponed.without(innocent, held, time.Now())
	require.Equal(t, innocent, kept)
	require.Empty(t, late, "it is the new one's, of which nothing is known")
	require.Len(t, held.Frontends, 1)
	g.take(hostile, 0)
	require.NotEmpty(t, g.fails, "the former one waits still")
}

func TestAFrontendThatIsRefusedIsNotLeftToAnotherTenant(t *testing.T) {
	g, told := teller(t, takesAll)
	g.take(ports("hostile", 1, 1), 0)
	require.NoError(t, g.tell(t.Context()))
	g.apply = func(_ context.Context, d model.Delta) (failed []dataplane.RecordError, _ error) {
		*told = append(*told, d)
		for _, f := range d.UpsertFrontends {
			failed = append(failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: "full"})
		}
		return failed, nil
	}
	innocent := ports("a", 1, 1)
	g.take(innocent, 0)
	for !g.backlog.Empty() {
		require.NoError(t, g.tell(t.Context()))
	}
	require.Equal(t, []model.FrontendKey{innocent.UpsertFrontends[0].FrontendKey}, (*told)[len(*told)-1].DeleteFrontends, "else its clients would reach the former tenant's nodes")
	require.Equal(t, "full", g.fails["frontend "+innocent.UpsertFrontends[0].FrontendKey.String()].message)
	require.Empty(t, g.held)
}

func TestWhoLacksNothingIsToldSoWhileAnotherTenantsRecordsAreOnTheirWay(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	requireReady(t, h.conditions())
	h.flushed = 4
	h.starting, h.problem = true, errors.New("the process ended")
	h.backlog.Add(ports("hostile", 1, 2*batchCost), 3)
	h.syncing = &syncing{until: 1, version: 4}
	h.publish()
	s := <-h.status
	require.Equal(t, "4", s.AppliedResourceVersion)
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-hostile", ResourceVersion: "3"}}, s.Behind)

	h.backlog.HoldsUnknown(ports("", 9, 1).UpsertFrontends[0].FrontendKey)
	h.backlog.Add(model.Delta{DeleteFrontends: []model.FrontendKey{ports("", 9, 1).UpsertFrontends[0].FrontendKey}}, 3)
	h.publish()
	require.Empty(t, (<-h.status).AppliedResourceVersion, "somebody's frontend is there still, and nobody knows whose")
	h.restartLater()
	h.publish()
	require.Empty(t, (<-h.status).AppliedResourceVersion, "what was told last may not have come to anything")
}

func TestAGatewayThatHasBegunAnewKnowsWhoseFrontendsTheDataplaneHas(t *testing.T) {
	g, _ := teller(t, takesAll)
	a := ports("a", 1, 2).UpsertFrontends
	held := model.NewDigests()
	for _, f := range a {
		held.Frontends[f.FrontendKey] = f.Digest()
	}
	g.recognise(held, model.Delta{UpsertFrontends: a}, model.Delta{})
	g.flushed = 4
	g.take(model.Delta{DeleteFrontends: []model.FrontendKey{a[0].FrontendKey}}, 3)
	_, behind := g.applied()
	require.Equal(t, []v1alpha1.GatewayBehind{{Namespace: "tenant-a", ResourceVersion: "3"}}, behind, "the address must not be another one's before the dataplane has let go of it")
}

func TestAGatewayThatHasBegunAnewKnowsHowLargeThePoolsAreThatTheDataplaneHas(t *testing.T) {
	g, told := teller(t, takesAll)
	var has, gone model.Delta
	for _, id := range []model.PoolID{"a/one", "a/two"} {
		has.UpsertPools = append(has.UpsertPools, model.Pool{ID: id, Tenant: "a", Endpoints: make([]model.Endpoint, batchCost)})
		gone.DeletePools = append(gone.DeletePools, id)
	}
	g.recognise(model.NewDigests(), has, model.Delta{})
	g.take(gone, 0)
	for !g.backlog.Empty() {
		require.NoError(t, g.tell(t.Context()))
	}
	require.Len(t, *told, 2, "to delete one is as much work as to write it")
}
