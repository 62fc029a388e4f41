package gateway

import (
	"maps"
	"slices"
	"strings"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// Bounds of what the Gateway object says of failures. Tenants bring them about as they like, so that each has its share of the room.
const (
	maxFailures         = 1000
	maxFailuresOfTenant = 20
	maxMessage          = 256
)

// listed selects the failed records that the Gateway object names: for each tenant some, and for each LoadBalancer the first one, frontends before
// pools. unlisted are the namespaces with more failing LoadBalancers, or v1alpha1.AllNamespaces if there are more than maxFailures of them.
func listed(fails map[string]failure) (failures []v1alpha1.GatewayFailure, unlisted []string) {
	of, named := map[string][]v1alpha1.GatewayFailure{}, map[string]bool{}
	for _, record := range slices.Sorted(maps.Keys(fails)) { // which has frontends before pools
		f := fails[record]
		if f.owner != "" && named[f.owner] {
			continue
		}
		named[f.owner] = true
		namespace, _, _ := strings.Cut(f.owner, "/")
		if f.tenant != "" {
			namespace = translate.Tenant{Name: f.tenant}.Namespace()
		}
		of[namespace] = append(of[namespace], v1alpha1.GatewayFailure{LoadBalancer: f.owner, Record: record, Message: plain.Message(f.message, maxMessage)})
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
	if len(unlisted) > maxFailures {
		unlisted = []string{v1alpha1.AllNamespaces}
	}
	return failures, unlisted
}
