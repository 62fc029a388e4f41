package driver

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

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// recordingDriver returns a driver, and the deltas that its dataplane was sent. fails makes the dataplane return an error.
func recordingDriver(t *testing.T, fails func(model.Delta) error) (*Driver, *[]model.Delta) {
	t.Helper()
	driver := New(Options{Model: translate.NewTranslator(), Addresses: newAddressRecorder(), Observer: new(startCounter), Redirect: noRedirect, Log: slog.New(slog.DiscardHandler)})
	driver.runner.description, driver.synced = dataplane.Description{Name: "test"}, true
	var sent []model.Delta
	driver.apply = func(_ context.Context, d model.Delta) ([]dataplane.RecordError, error) {
		if err := fails(d); err != nil {
			return nil, err
		}
		sent = append(sent, d)
		return nil, nil
	}
	return driver, &sent
}

func acceptAll(model.Delta) error { return nil }

// ports returns a LoadBalancer of a tenant with n ports.
func ports(tenant string, vip byte, n int) model.Delta {
	d := model.Delta{UpsertPools: []model.Pool{{ID: model.PoolID(tenant + "/p"), Tenant: tenant}}}
	for i := range n {
		d.UpsertFrontends = append(d.UpsertFrontends, model.Frontend{FrontendKey: model.FrontendKey{VIP: netip.AddrFrom4([4]byte{203, 0, 113, vip}), Protocol: model.TCP, Port: uint16(1 + i)}, Tenant: tenant, Pool: model.PoolID(tenant + "/p")})
	}
	return d
}

func TestATenantsChangeIsInTheNextBatchHoweverManyChangesAnotherTenantHas(t *testing.T) {
	driver, sent := recordingDriver(t, acceptAll)
	driver.enqueue(ports("hostile", 1, 5*batchCost), 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	require.Len(t, *sent, 1)
	require.LessOrEqual(t, (*sent)[0].Len(), batchCost)

	driver.enqueue(ports("a", 2, 2), 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	a := ports("a", 2, 2).UpsertFrontends
	require.True(t, driver.held.has(a[0].FrontendKey) && driver.held.has(a[1].FrontendKey), "the dataplane holds both ports")
	require.Equal(t, map[netip.Addr]bool{a[0].VIP: true}, driver.options.Addresses.(*addressRecorder).added)
	for !driver.backlog.Empty() {
		require.NoError(t, driver.sendBatch(t.Context()))
	}
	require.Len(t, *sent, 6, "batches are bounded, and as few as possible")
	require.Contains(t, driver.options.Addresses.(*addressRecorder).added, netip.MustParseAddr("203.0.113.1"), "the address is added with its last port")
}

func TestARecordThatEndsThePluginIsSentAloneToTheNextProcess(t *testing.T) {
	bad, does := ports("hostile", 1, 2).UpsertFrontends[1].FrontendKey, setFrontendOp(ports("hostile", 1, 2).UpsertFrontends[1])
	ended := errors.New("the process ended")
	driver, sent := recordingDriver(t, func(d model.Delta) error {
		if slices.ContainsFunc(d.UpsertFrontends, func(f model.Frontend) bool { return f.FrontendKey == bad }) {
			return ended
		}
		return nil
	})
	// The next process holds what the former one has taken, and gets all the rest.
	next := func() {
		driver.backlog.Clear()
		for _, d := range []model.Delta{ports("hostile", 1, 3), ports("a", 2, 3)} {
			for _, done := range *sent {
				d = without(d, done)
			}
			driver.enqueue(d, 0)
		}
	}
	ends := 0
	for next(); !driver.backlog.Empty(); {
		if driver.sendBatch(t.Context()) != nil {
			ends++
			next()
		}
	}
	require.Equal(t, 2, ends, "once with others, and once alone")
	require.Len(t, driver.failures, 1)
	require.Contains(t, driver.failures["frontend "+bad.String()].Message, "it is sent again after")
	require.Equal(t, 5, driver.HeldCount())

	for record, p := range driver.quarantine {
		p.until = time.Now()
		driver.quarantine[record] = p
	}
	next()
	require.ErrorIs(t, driver.sendBatch(t.Context()), ended, "it is tried again at its time, alone")
	require.InDelta(t, 2*minQuarantine, time.Until(driver.quarantine[does].until), float64(time.Minute), "the wait doubles")
}

func TestAPostponedRecordStaysAsTheDataplaneHoldsIt(t *testing.T) {
	q := quarantine{}
	d := ports("a", 1, 2)
	record := setFrontendOp(d.UpsertFrontends[0])
	q.add(record, time.Now())
	held := model.NewDigests()
	for _, f := range d.UpsertFrontends {
		held.Frontends[f.FrontendKey] = "of before"
	}
	kept, late := q.without(d, held, time.Now())
	difference := model.Difference(held, model.Snapshot{Pools: kept.UpsertPools, Frontends: kept.UpsertFrontends})
	require.Len(t, difference.UpsertFrontends, 1)
	require.Empty(t, difference.DeleteFrontends)
	require.Equal(t, record.record, late[0].Record())
	for range 20 {
		q.add(record, time.Now())
	}
	require.LessOrEqual(t, q[record].length, maxQuarantine)
}

func TestAnUnsupportedFrontendIsReportedAfterTheDataplaneHasDeletedIt(t *testing.T) {
	driver, sent := recordingDriver(t, acceptAll)
	driver.enqueue(ports("a", 1, 2), 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	change := ports("a", 1, 2).UpsertFrontends[:1]
	change[0].ProxyProtocol = true
	driver.enqueue(model.Delta{UpsertFrontends: change}, 0)
	for !driver.backlog.Empty() {
		require.NoError(t, driver.sendBatch(t.Context()))
	}
	require.Equal(t, []model.FrontendKey{change[0].FrontendKey}, (*sent)[1].DeleteFrontends)
	require.Contains(t, driver.failures["frontend "+change[0].FrontendKey.String()].Message, "does not support", fmt.Sprint(driver.failures))
	driver.enqueue(ports("a", 1, 2), 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	require.Empty(t, driver.failures)
}

func TestAQuarantineDoesNotAffectTheNextTenantOfAnAddress(t *testing.T) {
	ended := errors.New("the process ended")
	hostile, innocent := ports("hostile", 1, 1), ports("a", 1, 1)
	driver, sent := recordingDriver(t, func(d model.Delta) error {
		if len(d.UpsertFrontends) > 0 && d.UpsertFrontends[0].Tenant == "hostile" {
			return ended
		}
		return nil
	})
	for range 5 {
		driver.backlog.Clear()
		driver.enqueue(hostile, 0)
		for !driver.backlog.Empty() && driver.sendBatch(t.Context()) == nil {
		}
	}
	require.Len(t, driver.quarantine, 1)

	driver.enqueue(model.Delta{DeleteFrontends: []model.FrontendKey{hostile.UpsertFrontends[0].FrontendKey}}, 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	require.Equal(t, []model.FrontendKey{hostile.UpsertFrontends[0].FrontendKey}, (*sent)[len(*sent)-1].DeleteFrontends, "a record that could not be set can be deleted")
	driver.enqueue(innocent, 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	require.Equal(t, innocent, (*sent)[len(*sent)-1])
	require.Empty(t, driver.failures)

	held := model.NewDigests()
	held.Frontends[hostile.UpsertFrontends[0].FrontendKey] = "the former one's"
	kept, late := driver.quarantine.without(innocent, held, time.Now())
	require.Equal(t, innocent, kept)
	require.Empty(t, late, "the frontend belongs to the new tenant")
	require.Len(t, held.Frontends, 1)
	driver.enqueue(hostile, 0)
	require.NotEmpty(t, driver.failures, "the former tenant's frontend still waits")
}

func TestARefusedFrontendIsNotLeftToItsFormerTenant(t *testing.T) {
	driver, sent := recordingDriver(t, acceptAll)
	driver.enqueue(ports("hostile", 1, 1), 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	driver.apply = func(_ context.Context, d model.Delta) (failed []dataplane.RecordError, _ error) {
		*sent = append(*sent, d)
		for _, f := range d.UpsertFrontends {
			failed = append(failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: "full"})
		}
		return failed, nil
	}
	innocent := ports("a", 1, 1)
	driver.enqueue(innocent, 0)
	for !driver.backlog.Empty() {
		require.NoError(t, driver.sendBatch(t.Context()))
	}
	require.Equal(t, []model.FrontendKey{innocent.UpsertFrontends[0].FrontendKey}, (*sent)[len(*sent)-1].DeleteFrontends, "otherwise its clients would reach the former tenant's nodes")
	require.Equal(t, "full", driver.failures["frontend "+innocent.UpsertFrontends[0].FrontendKey.String()].Message)
	require.Zero(t, driver.HeldCount())
}

func TestARestartedGatewayKnowsTheTenantsOfHeldFrontends(t *testing.T) {
	driver, _ := recordingDriver(t, acceptAll)
	a := ports("a", 1, 2).UpsertFrontends
	held := model.NewDigests()
	for _, f := range a {
		held.Frontends[f.FrontendKey] = f.Digest()
	}
	driver.noteHeld(held, model.Delta{UpsertFrontends: a}, model.Delta{})
	driver.version = 4
	driver.enqueue(model.Delta{DeleteFrontends: []model.FrontendKey{a[0].FrontendKey}}, 3)
	behind, known := driver.Behind()
	require.True(t, known)
	require.Equal(t, map[string]uint64{"a": 3}, behind, "the address must not get another owner while the dataplane holds it")
}

func TestARestartedGatewayKnowsTheSizeOfHeldPools(t *testing.T) {
	driver, sent := recordingDriver(t, acceptAll)
	var has, gone model.Delta
	for _, id := range []model.PoolID{"a/one", "a/two"} {
		has.UpsertPools = append(has.UpsertPools, model.Pool{ID: id, Tenant: "a", Endpoints: make([]model.Endpoint, batchCost)})
		gone.DeletePools = append(gone.DeletePools, id)
	}
	driver.noteHeld(model.NewDigests(), has, model.Delta{})
	driver.enqueue(gone, 0)
	for !driver.backlog.Empty() {
		require.NoError(t, driver.sendBatch(t.Context()))
	}
	require.Len(t, *sent, 2, "deleting a pool costs as much as writing it")
}
