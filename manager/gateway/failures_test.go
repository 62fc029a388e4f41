package gateway

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
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
