package report

import (
	"maps"
	"slices"
	"strings"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/gateway/driver"
)

// Tenants can cause any number of failures. So the room for failures in the Gateway object is divided between tenants.
const (
	maxFailures         = 1000
	maxFailuresOfTenant = 20
	maxMessage          = 256
)

// ListFailures selects the failed records for the Gateway object: some of each tenant, and one for each LoadBalancer, frontends before pools.
// unlisted are the namespaces with more failing LoadBalancers, or v1alpha1.AllNamespaces if there are more than maxFailures of them.
func ListFailures(fails map[string]driver.Failure) (failures []v1alpha1.GatewayFailure, unlisted []string) {
	byNamespace, named := map[string][]v1alpha1.GatewayFailure{}, map[string]bool{}
	for _, record := range slices.Sorted(maps.Keys(fails)) { // frontends sort before pools
		f := fails[record]
		if f.Owner != "" && named[f.Owner] {
			continue
		}
		named[f.Owner] = true
		namespace, _, _ := strings.Cut(f.Owner, "/")
		if f.Tenant != "" {
			namespace = translate.Tenant{Name: f.Tenant}.Namespace()
		}
		byNamespace[namespace] = append(byNamespace[namespace], v1alpha1.GatewayFailure{LoadBalancer: f.Owner, Record: record, Message: plain.Message(f.Message, maxMessage)})
	}
	share := max(1, min(maxFailuresOfTenant, maxFailures/max(1, len(byNamespace))))
	for _, namespace := range slices.Sorted(maps.Keys(byNamespace)) {
		listed := byNamespace[namespace]
		listed = listed[:min(len(listed), share, maxFailures-len(failures))]
		failures = append(failures, listed...)
		more := slices.ContainsFunc(byNamespace[namespace][len(listed):], func(f v1alpha1.GatewayFailure) bool { return f.LoadBalancer != "" })
		if more {
			unlisted = append(unlisted, namespace)
		}
	}
	return failures, allNamespaces(unlisted, nil)
}

// allNamespaces returns the sorted namespaces of both lists, or v1alpha1.AllNamespaces if there are more than maxFailures.
func allNamespaces(a, b []string) []string {
	all := slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
	if len(all) > maxFailures || slices.Contains(all, v1alpha1.AllNamespaces) {
		return []string{v1alpha1.AllNamespaces}
	}
	return all
}
