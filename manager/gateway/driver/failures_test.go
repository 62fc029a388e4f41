package driver

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
)

func TestWhatFailsAgainAndAgainIsLoggedOnce(t *testing.T) {
	var log strings.Builder
	driver := New(Options{Model: translate.NewHub(), Addresses: newBoard(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	fail := func(message string) {
		sent := model.Delta{UpsertPools: []model.Pool{{ID: "a/one"}}}
		errs := []dataplane.RecordError{{Pool: "a/one", Message: message}}
		driver.failures = stillFailing(driver.failures, errs)
		driver.note(sent, errs)
	}
	fail("full")
	fail("full")
	require.Equal(t, 1, strings.Count(log.String(), "record refused"))
	fail("too large")
	require.Equal(t, 2, strings.Count(log.String(), "record refused"))
	require.Empty(t, stillFailing(driver.failures, nil))
}

// A tenant can have records refused for ever, and a gateway has those of all tenants.
func TestOfRecordsThatFailTheDataplaneIsToldAgainAndNothingElseIsCompared(t *testing.T) {
	h := newOnHost(t)
	h.Has(drivertest.Module, drivertest.Sysctl)
	h.works().requireWorking()
	refuses := true
	var told model.Delta
	h.apply = func(_ context.Context, d model.Delta) (failed []dataplane.RecordError, _ error) {
		told = d
		for _, f := range d.UpsertFrontends {
			if f.Tenant == "hostile" && refuses {
				failed = append(failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: "full"})
			}
		}
		return failed, nil
	}
	h.asks("a", 3, 1, netip.MustParseAddr("203.0.113.1"))
	h.asks("hostile", 2, 2, netip.MustParseAddr("203.0.113.2"))
	h.sync()
	require.Len(t, h.failures, 2)
	require.WithinDuration(t, time.Now().Add(retryFailed), h.retryAt, time.Second)

	h.Has(drivertest.Hang("Applied"))
	h.runner.limits.applied = time.Second
	again := func() {
		told, h.retryAt = model.Delta{}, time.Now()
		h.sync()
		require.NoError(t, h.Problem(), "the dataplane is not asked what it holds")
	}
	for range 3 {
		again()
		require.Len(t, told.UpsertFrontends, 2)
		require.Equal(t, 2, told.Len())
		require.Equal(t, "hostile", told.UpsertFrontends[0].Tenant)
		require.Len(t, h.failures, 2)
		require.WithinDuration(t, time.Now().Add(retryFailed), h.retryAt, time.Second)
	}
	h.asks("hostile", 1, 3, netip.MustParseAddr("203.0.113.2"))
	again()
	require.Len(t, h.failures, 1, "of what is gone nothing fails")
	refuses = false
	again()
	require.Empty(t, h.failures)
	again()
	require.Zero(t, told.Len())
	require.True(t, h.retryAt.IsZero())
}

func TestWhatABackendDoesNotSupportIsNotSentAgain(t *testing.T) {
	driver, told := teller(t, takesAll)
	change := ports("a", 1, 1)
	change.UpsertFrontends[0].ProxyProtocol = true
	driver.enqueue(change, 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	require.Len(t, driver.failures, 1)
	*told = nil
	hub := driver.options.Model.(*translate.Hub)
	hub.SetTenant(translate.Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{netip.MustParseAddr("203.0.113.1")},
		Addresses: []translate.Address{{IP: "198.51.100.1"}}, Ports: []translate.Port{{Number: 1}}, EndpointPorts: []translate.Port{{Number: 30000}}, ProxyProtocol: translate.ProxyProtocolV2})
	hub.Flush()
	driver.retry(0)
	require.True(t, driver.backlog.Empty())
	require.Len(t, driver.failures, 1, "and it fails still")
	require.True(t, driver.retryAt.IsZero())
}
