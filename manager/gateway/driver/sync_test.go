package driver

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

var one, two = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")

// working returns a driver whose dataplane holds an empty model.
func working(t *testing.T, o Options) *testDriver {
	t.Helper()
	h := &testDriver{Host: drivertest.NewHost(t), t: t}
	if o.Load == nil {
		o.Load = h.load
	}
	h.new(o)
	h.Add(drivertest.Module, drivertest.Sysctl)
	h.retryAndSync().requireWorking()
	return h
}

// sent returns what the dataplane was sent since the last call.
func (h *testDriver) sent() (all []model.Delta) {
	for _, c := range h.Kernel.Changes()[h.sentCount:] {
		all = append(all, c.Delta)
	}
	h.sentCount += len(all)
	return all
}

func TestAStartedPluginGetsTheDifferenceToWhatItsDataplaneHolds(t *testing.T) {
	h := working(t, Options{})
	h.request("a", 2, 1, one)
	h.sync()
	h.sent()
	before := h.Kernel.Dump()
	h.Driver.Stop()
	require.Equal(t, before, h.Kernel.Dump(), "the state of the dataplane stays")

	h.request("b", 1, 2, two)
	h.sync()
	h.requireWorking()
	require.EqualValues(t, 2, h.starts)
	sent := h.sent()
	require.Len(t, sent, 1)
	require.Len(t, sent[0].UpsertFrontends, 1)
	require.Equal(t, "b", sent[0].UpsertFrontends[0].Tenant)
	require.Empty(t, sent[0].DeleteFrontends)
	require.Equal(t, map[netip.Addr]bool{one: true, two: true}, h.recorder.added)
	require.Equal(t, h.hub.Snapshot().Text(), h.Kernel.Dump())
}

func TestTheDataplaneDeletesWhatTheModelDoesNotHave(t *testing.T) {
	h := working(t, Options{})
	h.request("a", 2, 1, one)
	h.sync()
	former := h.Driver
	h.new(Options{Load: h.load}) // another manager, with an empty hub
	former.Stop()
	h.seen = 5
	h.retryAndSync().requireWorking()
	require.Empty(t, strings.TrimSpace(h.Kernel.Dump()))
	require.Empty(t, h.recorder.added)
	behind, known := h.Behind()
	require.True(t, known)
	require.Empty(t, behind)
}

func TestBehindIsUnknownUntilFrontendsOfUnknownTenantsAreDeleted(t *testing.T) {
	h := newTestDriver(t)
	held := model.NewDigests()
	for _, f := range ports("", 9, 1).UpsertFrontends {
		held.Frontends[f.FrontendKey] = "of before"
	}
	h.resyncFrom(held, 0)
	_, known := h.Behind()
	require.False(t, known)
}

func TestAPluginThatIsNotAtItsBaseGenerationIsBroughtToTheModelAgain(t *testing.T) {
	h := working(t, Options{})
	h.request("a", 1, 1, one)
	h.sync()
	h.Kernel.Restart() // the dataplane loses its generation
	h.request("a", 2, 2, one)
	h.sync()
	require.True(t, h.Resyncing())
	require.NoError(t, h.Problem())
	require.EqualValues(t, 1, h.starts, "its process is not started again")
	h.sync()
	h.requireWorking()
	require.Equal(t, h.hub.Snapshot().Text(), h.Kernel.Dump())
}

func TestAPluginThatIsNeverAtItsBaseGenerationIsStartedAgain(t *testing.T) {
	h := working(t, Options{})
	lost := func(context.Context, model.Delta) ([]dataplane.RecordError, error) {
		return nil, dataplane.ErrResync
	}
	h.apply = lost
	h.request("a", 1, 1, one)
	h.sync()
	require.NoError(t, h.Problem())
	h.sync()
	require.ErrorIs(t, h.Problem(), dataplane.ErrResync, "one resync in a row is the limit")
	require.False(t, h.Running())
}

func TestAPluginThatEndsIsStartedAgainAtOnceAndThenLaterEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := working(t, Options{})
		h.Add(drivertest.ExitOnApply)
		h.request("a", 1, 1, one)
		h.sync()
		require.Error(t, h.Problem())
		require.Zero(t, time.Until(h.RetryAt()), "at once")
		for _, pause := range []time.Duration{minBackoff, 2 * minBackoff, 4 * minBackoff} {
			starts := h.starts
			h.sync()
			require.Equal(t, starts+1, h.starts)
			require.Equal(t, pause, time.Until(h.RetryAt()))
			time.Sleep(pause - 1)
			h.sync()
			require.Equal(t, starts+1, h.starts, "it is not time yet")
			time.Sleep(time.Nanosecond)
		}
		h.Remove(drivertest.ExitOnApply)
		for h.sync(); h.HasWork(); {
			h.sync()
		}
		h.requireWorking()
		require.Zero(t, h.backoff, "the next restart is at once again")
	})
}

func TestTheEndOfAFormerProcessIsIgnored(t *testing.T) {
	h := working(t, Options{})
	former := h.Process()
	require.NoError(t, former.Kill())
	require.Equal(t, former, <-h.Ended())
	require.True(t, h.HandleEnd(former))
	h.retryAndSync().requireWorking()
	require.False(t, h.HandleEnd(former))
	h.requireWorking()
}

func TestBehindHasTheVersionOfEachTenant(t *testing.T) {
	h := working(t, Options{})
	many := []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("198.18.0.3"), netip.MustParseAddr("198.18.0.4")}
	h.request("busy", 250, 7, many...)
	h.request("a", 1, 8, one)
	h.sync()
	require.True(t, h.StateKnown())
	require.EqualValues(t, 8, h.Version())
	behind, known := h.Behind()
	require.True(t, known)
	require.Equal(t, map[string]uint64{"busy": 0}, behind)
	require.True(t, h.HasWork())
	for h.HasWork() {
		h.sync()
	}
	behind, _ = h.Behind()
	require.Empty(t, behind)
	require.Equal(t, 1001, h.HeldCount())

	h.Driver.Stop()
	require.False(t, h.StateKnown(), "the last changes may be lost")
}

func TestARefusedRecordIsAFailureOfItsOwnerOnly(t *testing.T) {
	h := working(t, Options{})
	refused := model.FrontendKey{VIP: one, Protocol: model.TCP, Port: 1}
	h.Kernel.Refuse(func(record string) string {
		if record == "frontend "+refused.String() {
			return "full"
		}
		return ""
	})
	h.request("a", 2, 1, one)
	h.sync()
	require.Equal(t, 1, len(h.Failures()))
	f := h.Failures()["frontend "+refused.String()]
	require.Equal(t, "tenant-a/lb", f.Owner)
	require.Equal(t, "full", f.Message)
	require.False(t, h.Serves(refused))
	require.True(t, h.Serves(model.FrontendKey{VIP: one, Protocol: model.TCP, Port: 2}))
	require.NoError(t, h.Problem())
	h.Kernel.Refuse(nil)
	h.retryAt = time.Now()
	h.sync()
	require.Empty(t, h.Failures())
	require.True(t, h.Serves(refused))
}

func TestRedirectsAreSentForHeldFrontendsAndForTheBacklog(t *testing.T) {
	to := map[netip.Addr]model.Redirect{}
	h := &testDriver{Host: drivertest.NewHost(t), t: t}
	h.Kernel.Features = []dataplane.Feature{dataplane.Redirects}
	h.new(Options{Load: h.load, Redirect: func(a netip.Addr) model.Redirect { return to[a] }})
	h.Add(drivertest.Module)
	h.retryAndSync().requireWorking()
	many := []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("198.18.0.3")}
	h.request("a", 2, 1, one)
	h.sync()
	h.request("busy", 250, 2, many...)
	h.sync()
	require.True(t, h.HasWork())
	h.sent()

	next := model.Redirect{Next: netip.MustParseAddr("192.0.2.2"), Limit: 3}
	addresses := map[netip.Addr]bool{one: true}
	to[one] = next
	for _, a := range many {
		to[a], addresses[a] = next, true
	}
	h.SendRedirects(t.Context(), addresses)
	redirected := map[netip.Addr]int{}
	note := func() {
		for _, d := range h.sent() {
			for _, f := range d.UpsertFrontends {
				if f.Redirect == next {
					redirected[f.VIP]++
				}
			}
		}
	}
	note()
	require.Equal(t, 2, redirected[one], "at once")
	require.Less(t, redirected[many[0]]+redirected[many[1]]+redirected[many[2]], 750, "the rest is not sent yet")
	for h.HasWork() {
		h.sync()
	}
	note()
	require.Equal(t, map[netip.Addr]int{one: 2, many[0]: 250, many[1]: 250, many[2]: 250}, redirected, "each once")
}

func TestOnlyFrontendsThatSupportARedirectGetOne(t *testing.T) {
	h := working(t, Options{Redirect: func(netip.Addr) model.Redirect { return model.Redirect{Next: two, Limit: 1} }})
	f := ports("a", 1, 1).UpsertFrontends[0]
	all := h.runner.description.Features
	h.runner.description.Features = slices.DeleteFunc(slices.Clone(all), func(f dataplane.Feature) bool { return f == dataplane.Redirects })
	require.Zero(t, h.withRedirect(f).Redirect, "this plugin cannot redirect")
	h.runner.description.Features = all
	require.NotZero(t, h.withRedirect(f).Redirect)
	udp, direct := f, f
	udp.Protocol, direct.Forwarding = model.UDP, model.Direct
	require.Zero(t, h.withRedirect(udp).Redirect)
	require.Zero(t, h.withRedirect(direct).Redirect)
}

func TestAPurgeStartsThePluginAndLeavesNothing(t *testing.T) {
	h := working(t, Options{})
	h.request("a", 2, 1, one)
	h.sync()
	h.Driver.Stop()
	require.NoError(t, h.Purge(t.Context()))
	require.Empty(t, strings.TrimSpace(h.Kernel.Dump()))
	require.NoError(t, h.RemoveInstalled())
	all, err := h.installed.read()
	require.NoError(t, err)
	require.Empty(t, all, "later backends need not purge it")

	h.broken = errors.New("its binary is gone")
	h.Driver.Stop()
	require.ErrorIs(t, h.Purge(t.Context()), h.broken)
}

func TestAFormerBackendIsPurgedOnceTheDataplaneHoldsEverything(t *testing.T) {
	former := drivertest.NewHost(t)
	former.Add(drivertest.Module)
	gone := errors.New("no such file")
	var missing error = gone
	h := &testDriver{Host: drivertest.NewHost(t), t: t}
	h.new(Options{Load: func(o plugin.Options) (Process, error) {
		if filepath.Base(o.Path) != "kubelb-backend-old" {
			return h.Start(), nil
		}
		if missing != nil {
			return nil, missing
		}
		return former.Start(), nil
	}})
	require.NoError(t, h.installed.add("old", installedBackend{Path: "/usr/bin/kubelb-backend-old", Options: drivertest.Options(former.Dir)}))
	require.Empty(t, h.purgeNow)
	h.Add(drivertest.Module)
	h.retryAndSync().requireWorking()
	require.Len(t, h.purgeNow, 1, "purged now, and not before")

	require.Contains(t, h.purgeFormer(t.Context())["old"], "put its binary back")
	missing = nil
	require.Empty(t, h.purgeFormer(t.Context()))
	all, err := h.installed.read()
	require.NoError(t, err)
	require.NotContains(t, all, "old")
	require.Contains(t, all, h.options.Plugin.Name())
}

func TestResultsOfRunReachTheLoop(t *testing.T) {
	h := newTestDriver(t)
	require.NoError(t, h.installed.add("old", installedBackend{Path: "/nowhere/kubelb-backend-old"}))
	h.Add(drivertest.Module)
	h.retryAndSync().requireWorking()
	h.brokenPath = "kubelb-backend-old"
	ctx, end := context.WithCancel(t.Context())
	ended, posted := make(chan error, 1), make(chan func(), 4)
	go func() { ended <- h.Run(ctx, func(_ context.Context, event func()) { posted <- event }) }()
	select {
	case event := <-posted:
		event()
	case <-time.After(10 * time.Second):
		require.Fail(t, "the former backend is not purged")
	}
	require.Contains(t, h.Unpurged()["old"], "the former backend old still has state")
	end()
	require.NoError(t, <-ended)
}
