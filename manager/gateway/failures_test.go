package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/probe"
)

func TestOfEachLoadBalancerTheFirstRecordIsListedThatFailed(t *testing.T) {
	failures, unlisted := listed(map[string]failure{
		"frontend TCP 203.0.113.1:80": {owner: "tenant-a/web", message: "full"}, "frontend TCP 203.0.113.1:443": {owner: "tenant-a/web", message: "full"},
		"pool a/one": {tenant: "a", message: strings.Repeat("x", 1000)}})
	require.Equal(t, []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/web", Record: "frontend TCP 203.0.113.1:443", Message: "full"},
		{Record: "pool a/one", Message: strings.Repeat("x", 235) + "... (765 bytes more)"}}, failures)
	require.Empty(t, unlisted)
}

func TestATenantWithManyFailuresHidesNobodyElses(t *testing.T) {
	fails := map[string]failure{}
	fail := func(namespace string, n int) {
		for i := range n {
			owner := fmt.Sprintf("%s/lb%d", namespace, i)
			fails["frontend of "+owner] = failure{owner: owner}
		}
	}
	named := func(failures []v1alpha1.GatewayFailure) map[string]int {
		of := map[string]int{}
		for _, f := range failures {
			namespace, _, _ := strings.Cut(f.LoadBalancer, "/")
			of[namespace]++
		}
		return of
	}
	fail("tenant-a", 10_000)
	fail("tenant-b", maxFailuresOfTenant)
	failures, unlisted := listed(fails)
	require.Equal(t, map[string]int{"tenant-a": maxFailuresOfTenant, "tenant-b": maxFailuresOfTenant}, named(failures))
	require.Equal(t, []string{"tenant-a"}, unlisted)

	for i := range 200 {
		fail(fmt.Sprintf("tenant-%d", i), 10)
	}
	failures, unlisted = listed(fails)
	require.LessOrEqual(t, len(failures), maxFailures)
	require.Len(t, named(failures), 202, "each is told of some")
	require.Len(t, unlisted, 202)

	for i := range maxFailures {
		fail(fmt.Sprintf("tenant-%d", i+200), 2)
	}
	failures, unlisted = listed(fails)
	require.Len(t, failures, maxFailures)
	require.Equal(t, []string{v1alpha1.AllNamespaces}, unlisted, "there are more namespaces than unlisted may name")
}

func TestPoolsOfATenantThatFailHideNobodyElses(t *testing.T) {
	g := New(Options{Name: "g", Announcer: board{}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
	var errs []dataplane.RecordError
	for i := range 2 * maxFailures {
		errs = append(errs, dataplane.RecordError{Pool: model.PoolID(fmt.Sprint("hostile/", i)), Message: "full"})
	}
	g.note(model.Delta{}, append(errs, dataplane.RecordError{Pool: "innocent/p", Message: "full"}))
	failures, unlisted := listed(g.fails)
	require.Len(t, failures, maxFailuresOfTenant+1)
	require.Contains(t, failures, v1alpha1.GatewayFailure{Record: "pool innocent/p", Message: "full"})
	require.Empty(t, unlisted, "none of their LoadBalancers has failed")
}

func TestWhatFailsAgainAndAgainIsLoggedOnce(t *testing.T) {
	var log strings.Builder
	g := New(Options{Name: "g", Announcer: board{}, Log: slog.New(slog.NewTextHandler(&log, nil))}, nil, nil)
	fail := func(message string) {
		sent := model.Delta{UpsertPools: []model.Pool{{ID: "a/one"}}}
		errs := []dataplane.RecordError{{Pool: "a/one", Message: message}}
		g.fails = stillFailing(g.fails, errs)
		g.note(sent, errs)
	}
	fail("full")
	fail("full")
	require.Equal(t, 1, strings.Count(log.String(), "record refused"))
	fail("too large")
	require.Equal(t, 2, strings.Count(log.String(), "record refused"))
	require.Empty(t, stillFailing(g.fails, nil))
}

// A tenant can have records refused for ever, and a gateway has those of all tenants.
func TestOfRecordsThatFailTheDataplaneIsToldAgainAndNothingElseIsCompared(t *testing.T) {
	h := newOnHost(t)
	h.has(moduleFile)
	h.has(sysctlFile)
	requireReady(t, h.conditions())
	h.prober = probe.New(probe.DefaultConfig(), func(probe.Result) {})
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
	h.work(t.Context())
	require.Len(t, h.fails, 2)
	require.WithinDuration(t, time.Now().Add(retryFailed), h.retryAt, time.Second)

	h.has(hangFile("Applied"))
	h.host.limits.applied = time.Second
	again := func() {
		told, h.retryAt = model.Delta{}, time.Now()
		h.work(t.Context())
		require.NoError(t, h.problem, "the dataplane is not asked what it holds")
	}
	for range 3 {
		again()
		require.Len(t, told.UpsertFrontends, 2)
		require.Equal(t, 2, told.Len())
		require.Equal(t, "hostile", told.UpsertFrontends[0].Tenant)
		require.Len(t, h.fails, 2)
		require.WithinDuration(t, time.Now().Add(retryFailed), h.retryAt, time.Second)
	}
	h.asks("hostile", 1, 3, netip.MustParseAddr("203.0.113.2"))
	again()
	require.Len(t, h.fails, 1, "of what is gone nothing fails")
	refuses = false
	again()
	require.Empty(t, h.fails)
	again()
	require.Zero(t, told.Len())
	require.True(t, h.retryAt.IsZero())
}

func TestWhatABackendDoesNotSupportIsNotSentAgain(t *testing.T) {
	g, told := teller(t, takesAll)
	change := ports("a", 1, 1)
	change.UpsertFrontends[0].ProxyProtocol = true
	g.take(change, 0)
	require.NoError(t, g.tell(t.Context()))
	require.Len(t, g.fails, 1)
	*told = nil
	g.hub.SetTenant(translate.Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	g.hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{netip.MustParseAddr("203.0.113.1")},
		Addresses: []translate.Address{{IP: "198.51.100.1"}}, Ports: []translate.Port{{Number: 1}}, EndpointPorts: []translate.Port{{Number: 30000}}, ProxyProtocol: translate.ProxyProtocolV2})
	g.hub.Flush()
	g.retry(0)
	require.True(t, g.backlog.Empty())
	require.Len(t, g.fails, 1, "and it fails still")
	require.True(t, g.retryAt.IsZero())
}
