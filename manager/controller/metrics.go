package controller

import (
	"fmt"
	"math/big"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/convert"
)

// metrics are what the controllers tell Prometheus. The replica that is elected tells it; others tell nothing.
type metrics struct {
	addresses     *prometheus.GaugeVec
	loadBalancers *prometheus.GaugeVec
	pending       *prometheus.GaugeVec
	quota         *prometheus.GaugeVec
	ready         prometheus.Histogram
	policies      *prometheus.GaugeVec
	connected     *prometheus.GaugeVec
}

// newMetrics registers them; nil registers nowhere.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		addresses: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_address_pool_addresses", Help: "Addresses of an AddressPool, by family and whether they are used or free."},
			[]string{"pool", "family", "state"}),
		loadBalancers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_tenant_loadbalancers", Help: "LoadBalancers of a tenant, by whether they are served (ready) or wait for something (pending)."},
			[]string{"tenant", "state"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_loadbalancers_pending", Help: "LoadBalancers that are not served, by the reason of their condition Ready."},
			[]string{"reason"}),
		quota: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_tenant_quota", Help: "What a tenant has (used), and where it is bounded what it may have at most (limit)."},
			[]string{"tenant", "resource", "type"}),
		ready: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubelb_loadbalancer_ready_seconds",
			Help: "How long LoadBalancers were there when they were first served, to the second.", Buckets: []float64{1, 2, 5, 10, 30, 60, 300, 900, 3600}}),
		policies: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_admission_policy_in_force", Help: "Whether a ValidatingAdmissionPolicy of the chart is there, bound, and denies (1) or not (0)."},
			[]string{"policy"}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_tenant_ccm_connected", Help: "Whether the tenant's CCM renews its Lease (1) or has ceased to (0). Absent if no renewal was seen."},
			[]string{"tenant"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.addresses, m.loadBalancers, m.pending, m.quota, m.ready, m.policies, m.connected} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// show replaces what was said by what there is now.
func (m *metrics) show(pools []v1alpha1.AddressPool, lbs []v1alpha1.LoadBalancer, tenants []v1alpha1.Tenant) {
	m.showPools(pools)
	m.showLoadBalancers(lbs)
	m.showQuotas(tenants)
}

func (m *metrics) showPools(pools []v1alpha1.AddressPool) {
	m.addresses.Reset()
	for i := range pools {
		p := &pools[i]
		for family, count := range map[string]*v1alpha1.AddressCount{"IPv4": p.Status.IPv4, "IPv6": p.Status.IPv6} {
			if count == nil {
				continue
			}
			free, _ := new(big.Float).SetString(count.Free)
			if free == nil {
				continue
			}
			number, _ := free.Float64()
			m.addresses.WithLabelValues(p.Name, family, "used").Set(float64(count.Used))
			m.addresses.WithLabelValues(p.Name, family, "free").Set(number)
		}
	}
}

func (m *metrics) showLoadBalancers(lbs []v1alpha1.LoadBalancer) {
	m.loadBalancers.Reset()
	m.pending.Reset()
	for i := range lbs {
		tenant, is := translate.TenantOf(lbs[i].Namespace)
		if !is {
			continue
		}
		// Both states are there, so that a sum over one of them is never nothing.
		ready, pending := m.loadBalancers.WithLabelValues(tenant, "ready"), m.loadBalancers.WithLabelValues(tenant, "pending")
		condition := meta.FindStatusCondition(lbs[i].Status.Conditions, v1alpha1.ConditionReady)
		switch {
		case condition == nil:
			pending.Inc()
			m.pending.WithLabelValues(reasonNew).Inc()
		case condition.Status == metav1.ConditionTrue:
			ready.Inc()
		default:
			pending.Inc()
			m.pending.WithLabelValues(condition.Reason).Inc()
		}
	}
}

// reasonNew is that of a LoadBalancer that nobody has looked at yet.
const reasonNew = "New"

func (m *metrics) showQuotas(tenants []v1alpha1.Tenant) {
	m.quota.Reset()
	for i := range tenants {
		t := &tenants[i]
		if used := t.Status.Used; used != nil {
			m.quota.WithLabelValues(t.Name, "loadbalancers", "used").Set(float64(used.LoadBalancers))
			m.quota.WithLabelValues(t.Name, "addresses", "used").Set(float64(used.Addresses))
			m.quota.WithLabelValues(t.Name, "ports", "used").Set(float64(used.Ports))
			m.showQuota(t.Name, "used", used.EndpointsPerLoadBalancer, used.ConnectionsPerPort, used.NewConnectionsPerSecondPerPort)
		}
		limits := t.Spec.Limits
		for resource, limit := range map[string]*int32{"loadbalancers": limits.LoadBalancers, "addresses": limits.Addresses, "ports": convert.PortLimit(t)} {
			if limit != nil {
				m.quota.WithLabelValues(t.Name, resource, "limit").Set(float64(*limit))
			}
		}
		m.showQuota(t.Name, "limit", limits.EndpointsPerLoadBalancer, limits.ConnectionsPerPort, limits.NewConnectionsPerSecondPerPort)
	}
}

// showQuota tells of what bounds one LoadBalancer, or one port, where it is bounded.
func (m *metrics) showQuota(tenant, kind string, endpoints, connections, newConnections *int32) {
	for resource, n := range map[string]*int32{"endpoints-per-loadbalancer": endpoints, "connections-per-port": connections, "new-connections-per-second-per-port": newConnections} {
		if n != nil {
			m.quota.WithLabelValues(tenant, resource, kind).Set(float64(*n))
		}
	}
}
