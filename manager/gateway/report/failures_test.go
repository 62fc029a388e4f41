package report

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/gateway/driver"
)

func TestOneFailedRecordOfEachLoadBalancerIsListed(t *testing.T) {
	failures, unlisted := ListFailures(map[string]driver.Failure{
		"frontend TCP 203.0.113.1:80": {Owner: "tenant-a/web", Message: "full"}, "frontend TCP 203.0.113.1:443": {Owner: "tenant-a/web", Message: "full"},
		"pool a/one": {Tenant: "a", Message: strings.Repeat("x", 1000)}})
	require.Equal(t, []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/web", Record: "frontend TCP 203.0.113.1:443", Message: "full"},
		{Record: "pool a/one", Message: strings.Repeat("x", 235) + "... (765 bytes more)"}}, failures)
	require.Empty(t, unlisted)
}

func TestATenantWithManyFailuresDoesNotHideThoseOfOthers(t *testing.T) {
	fails := map[string]driver.Failure{}
	fail := func(namespace string, n int) {
		for i := range n {
			owner := fmt.Sprintf("%s/lb%d", namespace, i)
			fails["frontend of "+owner] = driver.Failure{Owner: owner}
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
	failures, unlisted := ListFailures(fails)
	require.Equal(t, map[string]int{"tenant-a": maxFailuresOfTenant, "tenant-b": maxFailuresOfTenant}, named(failures))
	require.Equal(t, []string{"tenant-a"}, unlisted)

	for i := range 200 {
		fail(fmt.Sprintf("tenant-%d", i), 10)
	}
	failures, unlisted = ListFailures(fails)
	require.LessOrEqual(t, len(failures), maxFailures)
	require.Len(t, named(failures), 202, "each namespace has some")
	require.Len(t, unlisted, 202)

	for i := range maxFailures {
		fail(fmt.Sprintf("tenant-%d", i+200), 2)
	}
	failures, unlisted = ListFailures(fails)
	require.Len(t, failures, maxFailures)
	require.Equal(t, []string{v1alpha1.AllNamespaces}, unlisted, "there are more namespaces than unlisted may name")
}

func TestFailedPoolsOfATenantDoNotHideThoseOfOthers(t *testing.T) {
	fails := map[string]driver.Failure{"pool innocent/p": {Tenant: "innocent", Message: "full"}}
	for i := range 2 * maxFailures {
		fails[fmt.Sprint("pool hostile/", i)] = driver.Failure{Tenant: "hostile", Message: "full"}
	}
	failures, unlisted := ListFailures(fails)
	require.Len(t, failures, maxFailuresOfTenant+1)
	require.Contains(t, failures, v1alpha1.GatewayFailure{Record: "pool innocent/p", Message: "full"})
	require.Empty(t, unlisted, "none of their LoadBalancers has failed")
}
