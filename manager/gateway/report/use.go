package report

import (
	"maps"
	"slices"
	"time"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// maxTenants is how many tenants' use the Gateway object tells.
const maxTenants = 1000

// useOf is what tenants use of their limits of connections: of each limit, what the busiest port has. before are the counters as they were read
// the time ago.
func useOf(frontends []model.Frontend, now, before map[model.FrontendKey]dataplane.Counter, ago time.Duration) (use []v1alpha1.GatewayTenantUse) {
	of := map[string]v1alpha1.GatewayTenantUse{}
	for _, f := range frontends {
		if f.MaxConnections == 0 && f.MaxNewPerSecond == 0 {
			continue
		}
		is, was := now[f.FrontendKey], before[f.FrontendKey]
		u := of[f.Tenant]
		u.Tenant = f.Tenant
		if f.MaxConnections > 0 {
			u.ConnectionsPerPort = higher(u.ConnectionsPerPort, steps(float64(is.Open), f.MaxConnections))
		}
		if f.MaxNewPerSecond > 0 {
			// What has just come into being, or was counted anew, has no rate yet.
			rate := 0.0
			if _, known := before[f.FrontendKey]; known && is.Connections >= was.Connections && ago > 0 {
				rate = float64(is.Connections-was.Connections) / ago.Seconds()
			}
			u.NewConnectionsPerSecondPerPort = higher(u.NewConnectionsPerSecondPerPort, steps(rate, f.MaxNewPerSecond))
		}
		of[f.Tenant] = u
	}
	for _, tenant := range slices.Sorted(maps.Keys(of)) {
		if len(use) < maxTenants {
			use = append(use, of[tenant])
		}
	}
	return use
}

// stepsOfLimit is in how many steps use is told, so that an object does not change with every connection.
const stepsOfLimit = 20

// steps is the number to a step of the limit.
func steps(n float64, limit uint32) int32 {
	step := max(1, int64(limit)/stepsOfLimit)
	return int32(min((int64(n)+step/2)/step*step, int64(limit)))
}

func higher(a *int32, b int32) *int32 {
	if a != nil && *a >= b {
		return a
	}
	return &b
}
