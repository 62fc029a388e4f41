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

// Bounds of what the Gateway object says of failures. Tenants bring them about as they like, so that each has its share of the room.
const (
	maxFailures         = 1000
	maxFailuresOfTenant = 20
	maxMessage          = 256
)

// List selects the failed records that the Gateway object names: for each tenant some, and for each LoadBalancer the first one, frontends before
// pools. unlisted are the namespaces with more failing LoadBalancers, or v1alpha1.AllNamespaces if there are more than maxFailures of them.
func List(fails map[string]driver.Failure) (failures []v1alpha1.GatewayFailure, unlisted []string) {
	of, named := map[string][]v1alpha1.GatewayFailure{}, map[string]bool{}
	for _, record := range slices.Sorted(maps.Keys(fails)) { // which has frontends before pools
		f := fails[record]
		if f.Owner != "" && named[f.Owner] {
			continue
		}
		named[f.Owner] = true
		namespace, _, _ := strings.Cut(f.Owner, "/")
		if f.Tenant != "" {
			namespace = translate.Tenant{Name: f.Tenant}.Namespace()
		}
		of[namespace] = append(of[namespace], v1alpha1.GatewayFailure{LoadBalancer: f.Owner, Record: record, Message: plain.Message(f.Message, maxMessage)})
	}
	share := max(1, min(maxFailuresOfTenant, maxFailures/max(1, len(of))))
	for _, namespace := range slices.Sorted(maps.Keys(of)) {
		some := of[namespace]
		some = some[:min(len(some), share, maxFailures-len(failures))]
		failures = append(failures, some...)
		more := slices.ContainsFunc(of[namespace][len(some):], func(f v1alpha1.GatewayFailure) bool { return f.LoadBalancer != "" })
		if more {
			unlisted = append(unlisted, namespace)
		}
	}
	return failures, allNamespaces(unlisted, nil)
}

// allNamespaces are the namespaces of both lists in order, or v1alpha1.AllNamespaces if there are more than maxFailures of them.
func allNamespaces(a, b []string) []string {
	all := slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
	if len(all) > maxFailures || slices.Contains(all, v1alpha1.AllNamespaces) {
		return []string{v1alpha1.AllNamespaces}
	}
	return all
}
