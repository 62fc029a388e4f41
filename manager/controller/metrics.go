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

// metrics are the metrics of the controllers. Only the elected replica sets them.
type metrics struct {
	addresses     *prometheus.GaugeVec
	loadBalancers *prometheus.GaugeVec
	pending       *prometheus.GaugeVec
	quota         *prometheus.GaugeVec
	ready         prometheus.Histogram
	policies      *prometheus.GaugeVec
	connected     *prometheus.GaugeVec
}

// newMetrics registers the metrics, unless r is nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		addresses: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_address_pool_addresses", Help: "Addresses of an AddressPool, by family and state: used or free."},
			[]string{"pool", "family", "state"}),
		loadBalancers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_tenant_loadbalancers", Help: "LoadBalancers of a tenant, by state: served (ready) or waiting for something (pending)."},
			[]string{"tenant", "state"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_loadbalancers_pending", Help: "LoadBalancers that are not served, by the reason of their condition Ready."},
			[]string{"reason"}),
		quota: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_tenant_quota", Help: "The use of resources by a tenant (used), and its limits (limit)."},
			[]string{"tenant", "resource", "type"}),
		ready: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubelb_loadbalancer_ready_seconds",
			Help: "Time from the creation of a LoadBalancer until it was first served, to the second.", Buckets: []float64{1, 2, 5, 10, 30, 60, 300, 900, 3600}}),
		policies: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_admission_policy_in_force", Help: "Whether a ValidatingAdmissionPolicy of the chart exists, is bound, and denies (1) or not (0)."},
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

// update sets all metrics by these objects.
func (m *metrics) update(pools []v1alpha1.AddressPool, lbs []v1alpha1.LoadBalancer, tenants []v1alpha1.Tenant) {
	m.updatePools(pools)
	m.updateLoadBalancers(lbs)
	m.updateQuotas(tenants)
}

func (m *metrics) updatePools(pools []v1alpha1.AddressPool) {
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

func (m *metrics) updateLoadBalancers(lbs []v1alpha1.LoadBalancer) {
	m.loadBalancers.Reset()
	m.pending.Reset()
	for i := range lbs {
		tenant, is := translate.TenantOf(lbs[i].Namespace)
		if !is {
			continue
		}
		// Both states exist, so that a sum over one of them is never absent.
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

// reasonNew is the reason in the metric for a LoadBalancer without conditions.
const reasonNew = "New"

func (m *metrics) updateQuotas(tenants []v1alpha1.Tenant) {
	m.quota.Reset()
	for i := range tenants {
		t := &tenants[i]
		if used := t.Status.Used; used != nil {
			m.quota.WithLabelValues(t.Name, "loadbalancers", "used").Set(float64(used.LoadBalancers))
			m.quota.WithLabelValues(t.Name, "addresses", "used").Set(float64(used.Addresses))
			m.quota.WithLabelValues(t.Name, "ports", "used").Set(float64(used.Ports))
			m.updateQuota(t.Name, "used", used.EndpointsPerLoadBalancer, used.ConnectionsPerPort, used.NewConnectionsPerSecondPerPort)
		}
		limits := t.Spec.Limits
		for resource, limit := range map[string]*int32{"loadbalancers": limits.LoadBalancers, "addresses": limits.Addresses, "ports": convert.PortLimit(t)} {
			if limit != nil {
				m.quota.WithLabelValues(t.Name, resource, "limit").Set(float64(*limit))
			}
		}
		m.updateQuota(t.Name, "limit", limits.EndpointsPerLoadBalancer, limits.ConnectionsPerPort, limits.NewConnectionsPerSecondPerPort)
	}
}

// updateQuota sets the metrics of limits for one LoadBalancer or one port, if there are such limits.
func (m *metrics) updateQuota(tenant, kind string, endpoints, connections, newConnections *int32) {
	for resource, n := range map[string]*int32{"endpoints-per-loadbalancer": endpoints, "connections-per-port": connections, "new-connections-per-second-per-port": newConnections} {
		if n != nil {
			m.quota.WithLabelValues(tenant, resource, kind).Set(float64(*n))
		}
	}
}
