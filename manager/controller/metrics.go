package controller

import (
	"fmt"
	"math/big"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/translate"
)

// metrics are what the controllers tell Prometheus. The replica that is elected tells it; others tell nothing.
type metrics struct {
	addresses     *prometheus.GaugeVec
	loadBalancers *prometheus.GaugeVec
}

// newMetrics registers them; nil registers nowhere.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		addresses: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_address_pool_addresses", Help: "Addresses of an AddressPool, by family and whether they are used or free."},
			[]string{"pool", "family", "state"}),
		loadBalancers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubelb_tenant_loadbalancers", Help: "LoadBalancers of a tenant, by whether they are served (ready) or wait for something (pending)."},
			[]string{"tenant", "state"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.addresses, m.loadBalancers} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// show replaces what was said by what pools and LoadBalancers are now.
func (m *metrics) show(pools []v1alpha1.AddressPool, lbs []v1alpha1.LoadBalancer) {
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
	m.loadBalancers.Reset()
	for i := range lbs {
		tenant, is := translate.TenantOf(lbs[i].Namespace)
		if !is {
			continue
		}
		// Both states are there, so that a sum over one of them is never nothing.
		ready, pending := m.loadBalancers.WithLabelValues(tenant, "ready"), m.loadBalancers.WithLabelValues(tenant, "pending")
		if meta.IsStatusConditionTrue(lbs[i].Status.Conditions, v1alpha1.ConditionReady) {
			ready.Inc()
		} else {
			pending.Inc()
		}
	}
}
