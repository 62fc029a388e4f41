package ebpf

import (
	"kubelb.k8c.io/backends/dataplane/shares"
	"kubelb.k8c.io/core/model"
)

// The sizes of the maps that all tenants share (bpf/model.h).
const (
	maxPools     = 1 << 14
	maxEndpoints = 1 << 17
	maxServices  = 1 << 17
	maxRanges    = 1 << 18
)

func resources() []shares.Resource {
	return []shares.Resource{
		{Unit: "pools", Size: maxPools, Advice: "use fewer LoadBalancers that have endpoints of their own"},
		{Unit: "endpoints (an endpoint counts in each of its pools)", Size: maxEndpoints, Advice: "use fewer endpoints, or fewer LoadBalancers that have endpoints of their own"},
		{Unit: "ports of all addresses", Size: maxServices, Advice: "use fewer ports"},
		{Unit: "source ranges (a source range counts for each of its ports)", Size: maxRanges, Advice: "use fewer ranges, or fewer ports with ranges"},
	}
}

func noUsage() shares.Usage { return make(shares.Usage, len(resources())) }

func poolUsage(endpoints int) shares.Usage { return shares.Usage{1, endpoints, 0, 0} }

func frontendUsage(ranges int) shares.Usage { return shares.Usage{0, 0, 1, ranges} }

// shares returns each tenant's usage of the maps.
func (s *state) shares() *shares.Shares {
	out := shares.New(resources())
	for id, p := range s.pools {
		out.Add(id.Tenant(), poolUsage(len(p.endpoints)))
	}
	for _, f := range s.frontends {
		out.Add(f.tenant, frontendUsage(len(f.ranges)))
	}
	return out
}

// replacePool counts a pool instead of the former one, nil for none. It refuses a pool beyond its tenant's share.
func replacePool(s *shares.Shares, p model.Pool, former *poolState) error {
	usage := noUsage()
	if former != nil {
		usage = poolUsage(len(former.endpoints))
	}
	return s.Replace(p.ID.Tenant(), usage, poolUsage(len(p.Endpoints)))
}

// replaceFrontend counts a frontend instead of the former one, nil for none. It refuses a frontend beyond its tenant's share.
func replaceFrontend(s *shares.Shares, f model.Frontend, former *frontendState) error {
	usage := noUsage()
	if former != nil && former.tenant == f.Tenant {
		usage = frontendUsage(len(former.ranges))
	}
	return s.Replace(f.Tenant, usage, frontendUsage(len(f.SourceRanges)))
}
