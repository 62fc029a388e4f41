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

func TestARepeatedFailureIsLoggedOnce(t *testing.T) {
	var log strings.Builder
	driver := New(Options{Model: translate.NewTranslator(), Addresses: newAddressRecorder(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	fail := func(message string) {
		sent := model.Delta{UpsertPools: []model.Pool{{ID: "a/one"}}}
		errs := []dataplane.RecordError{{Pool: "a/one", Message: message}}
		driver.failures = stillFailing(driver.failures, errs)
		driver.updateFailures(sent, errs)
	}
	fail("full")
	fail("full")
	require.Equal(t, 1, strings.Count(log.String(), "the dataplane refuses a record"))
	fail("too large")
	require.Equal(t, 2, strings.Count(log.String(), "the dataplane refuses a record"))
	require.Empty(t, stillFailing(driver.failures, nil))
}

// A tenant can have records refused for ever, and a gateway has the records of all tenants.
func TestOnlyFailedRecordsAreSentAgain(t *testing.T) {
	h := newTestDriver(t)
	h.Add(drivertest.Module, drivertest.Sysctl)
	h.retryAndSync().requireWorking()
	refuses := true
	var sent model.Delta
	h.apply = func(_ context.Context, d model.Delta) (failed []dataplane.RecordError, _ error) {
		sent = d
		for _, f := range d.UpsertFrontends {
			if f.Tenant == "hostile" && refuses {
				failed = append(failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: "full"})
			}
		}
		return failed, nil
	}
	h.request("a", 3, 1, netip.MustParseAddr("203.0.113.1"))
	h.request("hostile", 2, 2, netip.MustParseAddr("203.0.113.2"))
	h.sync()
	require.Len(t, h.failures, 2)
	require.WithinDuration(t, time.Now().Add(retryFailed), h.retryAt, time.Second)

	h.Add(drivertest.Hang("Applied"))
	h.runner.limits.applied = time.Second
	again := func() {
		sent, h.retryAt = model.Delta{}, time.Now()
		h.sync()
		require.NoError(t, h.Problem(), "the state of the dataplane is not read")
	}
	for range 3 {
		again()
		require.Len(t, sent.UpsertFrontends, 2)
		require.Equal(t, 2, sent.Len())
		require.Equal(t, "hostile", sent.UpsertFrontends[0].Tenant)
		require.Len(t, h.failures, 2)
		require.WithinDuration(t, time.Now().Add(retryFailed), h.retryAt, time.Second)
	}
	h.request("hostile", 1, 3, netip.MustParseAddr("203.0.113.2"))
	again()
	require.Len(t, h.failures, 1, "a deleted frontend does not fail any more")
	refuses = false
	again()
	require.Empty(t, h.failures)
	again()
	require.Zero(t, sent.Len())
	require.True(t, h.retryAt.IsZero())
}

func TestAnUnsupportedFrontendIsNotSentAgain(t *testing.T) {
	driver, sent := recordingDriver(t, acceptAll)
	change := ports("a", 1, 1)
	change.UpsertFrontends[0].ProxyProtocol = true
	driver.enqueue(change, 0)
	require.NoError(t, driver.sendBatch(t.Context()))
	require.Len(t, driver.failures, 1)
	*sent = nil
	hub := driver.options.Model.(*translate.Translator)
	hub.SetTenant(translate.Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{netip.MustParseAddr("203.0.113.1")},
		Addresses: []translate.Address{{IP: "198.51.100.1"}}, Ports: []translate.Port{{Number: 1}}, EndpointPorts: []translate.Port{{Number: 30000}}, ProxyProtocol: translate.ProxyProtocolV2})
	hub.Flush()
	driver.retry(0)
	require.True(t, driver.backlog.Empty())
	require.Len(t, driver.failures, 1, "it still fails")
	require.True(t, driver.retryAt.IsZero())
}
