package ebpf

import (
	"kubelb.k8c.io/backends/dataplane/shares"
	"kubelb.k8c.io/core/model"
)

// The rooms of the tables that all tenants share (bpf/model.h).
const (
	maxPools     = 1 << 14
	maxEndpoints = 1 << 17
	maxServices  = 1 << 17
	maxRanges    = 1 << 18
)

func rooms() []shares.Resource {
	return []shares.Resource{
		{Unit: "pools", Size: maxPools, Advice: "use fewer LoadBalancers that have endpoints of their own"},
		{Unit: "endpoints, counted in each pool", Size: maxEndpoints, Advice: "use fewer endpoints, or fewer LoadBalancers that have endpoints of their own"},
		{Unit: "ports, of all addresses", Size: maxServices, Advice: "use fewer ports"},
		{Unit: "source ranges, of which each port counts with each of its own", Size: maxRanges, Advice: "use fewer ranges, or fewer ports with ranges"},
	}
}

func nothing() shares.Usage { return make(shares.Usage, len(rooms())) }

func ofPool(endpoints int) shares.Usage { return shares.Usage{1, endpoints, 0, 0} }

func ofFrontend(ranges int) shares.Usage { return shares.Usage{0, 0, 1, ranges} }

// shares is how much of the tables each tenant has.
func (s *state) shares() *shares.Shares {
	out := shares.New(rooms())
	for id, p := range s.pools {
		out.Add(id.Tenant(), ofPool(len(p.endpoints)))
	}
	for _, f := range s.frontends {
		out.Add(f.tenant, ofFrontend(len(f.ranges)))
	}
	return out
}

// takePool counts a pool in the place of the one that was there, nil for none, and refuses it beyond its tenant's share.
func takePool(of *shares.Shares, p model.Pool, old *poolState) error {
	had := nothing()
	if old != nil {
		had = ofPool(len(old.endpoints))
	}
	return of.Replace(p.ID.Tenant(), ofPool(len(p.Endpoints)), had)
}

// takeFrontend is the same for a frontend.
func takeFrontend(of *shares.Shares, f model.Frontend, old *frontendState) error {
	had := nothing()
	if old != nil && old.tenant == f.Tenant {
		had = ofFrontend(len(old.ranges))
	}
	return of.Replace(f.Tenant, ofFrontend(len(f.SourceRanges)), had)
}
