package controller

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestMetricsAreWellNamedAndCountPoolsAndLoadBalancers(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	m, err := newMetrics(r)
	require.NoError(t, err)
	pool := *public()
	pool.Status = v1alpha1.AddressPoolStatus{IPv4: &v1alpha1.AddressCount{Used: 2, Free: "4"}, IPv6: &v1alpha1.AddressCount{Used: 1, Free: "18446744073709551615"}}
	served := *recorded("served", 0)
	served.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
	waits := *recorded("waits", 0)
	waits.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "PoolExhausted"}}
	most := int32(3)
	tenant := v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.TenantSpec{Limits: v1alpha1.TenantLimits{Addresses: &most}},
		Status: v1alpha1.TenantStatus{Used: &v1alpha1.TenantUse{LoadBalancers: 1, Addresses: 2, Ports: 4}}}
	elsewhere := *recorded("elsewhere", 0)
	elsewhere.Namespace = "default"
	for range 2 {
		m.update([]v1alpha1.AddressPool{pool}, []v1alpha1.LoadBalancer{served, waits, *recorded("new", 0), elsewhere}, []v1alpha1.Tenant{tenant})
	}
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP kubelb_address_pool_addresses Addresses of an AddressPool, by family and state: used or free.
# TYPE kubelb_address_pool_addresses gauge
kubelb_address_pool_addresses{family="IPv4",pool="public",state="free"} 4
kubelb_address_pool_addresses{family="IPv4",pool="public",state="used"} 2
kubelb_address_pool_addresses{family="IPv6",pool="public",state="free"} 1.8446744073709552e+19
kubelb_address_pool_addresses{family="IPv6",pool="public",state="used"} 1
# HELP kubelb_loadbalancers_pending LoadBalancers that are not served, by the reason of their condition Ready.
# TYPE kubelb_loadbalancers_pending gauge
kubelb_loadbalancers_pending{reason="New"} 1
kubelb_loadbalancers_pending{reason="PoolExhausted"} 1
# HELP kubelb_tenant_loadbalancers LoadBalancers of a tenant, by state: served (ready) or waiting for something (pending).
# TYPE kubelb_tenant_loadbalancers gauge
kubelb_tenant_loadbalancers{state="pending",tenant="a"} 2
kubelb_tenant_loadbalancers{state="ready",tenant="a"} 1
# HELP kubelb_tenant_quota The use of resources by a tenant (used), and its limits (limit).
# TYPE kubelb_tenant_quota gauge
kubelb_tenant_quota{resource="addresses",tenant="a",type="limit"} 3
kubelb_tenant_quota{resource="addresses",tenant="a",type="used"} 2
kubelb_tenant_quota{resource="loadbalancers",tenant="a",type="used"} 1
kubelb_tenant_quota{resource="ports",tenant="a",type="limit"} 5000
kubelb_tenant_quota{resource="ports",tenant="a",type="used"} 4
`), "kubelb_address_pool_addresses", "kubelb_loadbalancers_pending", "kubelb_tenant_loadbalancers", "kubelb_tenant_quota"))
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
}
