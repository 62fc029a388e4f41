package report

import (
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// maxTenants bounds the tenants in status.tenants.
const maxTenants = 1000

// useOf returns what tenants use of their limits of connections: for each limit the value of the busiest port. before are the counters of the time
// ago.
func useOf(frontends []model.Frontend, now, before map[model.FrontendKey]dataplane.Counter, ago time.Duration) (use []v1alpha1.GatewayTenantUse) {
	byTenant := map[string]v1alpha1.GatewayTenantUse{}
	for _, f := range frontends {
		if f.MaxConnections == 0 && f.MaxNewPerSecond == 0 {
			continue
		}
		current, former := now[f.FrontendKey], before[f.FrontendKey]
		u := byTenant[f.Tenant]
		u.Tenant = f.Tenant
		if f.MaxConnections > 0 {
			u.ConnectionsPerPort = maxOf(u.ConnectionsPerPort, roundToStep(float64(current.Open), f.MaxConnections))
		}
		if f.MaxNewPerSecond > 0 {
			// A new frontend, or one whose counter was reset, has no rate yet.
			rate := 0.0
			if _, known := before[f.FrontendKey]; known && current.Connections >= former.Connections && ago > 0 {
				rate = float64(current.Connections-former.Connections) / ago.Seconds()
			}
			u.NewConnectionsPerSecondPerPort = maxOf(u.NewConnectionsPerSecondPerPort, roundToStep(rate, f.MaxNewPerSecond))
		}
		byTenant[f.Tenant] = u
	}
	for _, tenant := range slices.Sorted(maps.Keys(byTenant)) {
		if len(use) < maxTenants {
			use = append(use, byTenant[tenant])
		}
	}
	return use
}

// stepsOfLimit is the number of steps in which use is reported, so that not every connection changes the object.
const stepsOfLimit = 20

// roundToStep rounds the number to a step of the limit.
func roundToStep(n float64, limit uint32) int32 {
	step := max(1, int64(limit)/stepsOfLimit)
	return int32(min((int64(n)+step/2)/step*step, int64(limit)))
}

func maxOf(a *int32, b int32) *int32 {
	if a != nil && *a >= b {
		return a
	}
	return &b
}
