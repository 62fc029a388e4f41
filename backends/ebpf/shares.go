package ebpf

import (
	"fmt"

	"kubelb.k8c.io/core/model"
)

// The rooms of the tables that all tenants share (bpf/model.h). A quarter of each is for tenants that have no more than a quarter: whoever has more
// gets nothing that would leave less of it.
const (
	maxPools     = 1 << 14
	maxEndpoints = 1 << 17
	maxServices  = 1 << 17
	maxRanges    = 1 << 18

	quarter = 4
)

// holding is how much of these tables something takes: by pools, endpoints, frontends and source ranges, of which a frontend takes as many as it has.
type holding [4]int

// room is a table: what it holds, how much of that, and what to do when there is too much.
type room struct {
	of   string
	size int
	mend string
}

// rooms are what the numbers of a holding count.
func rooms() [len(holding{})]room {
	return [len(holding{})]room{
		{"pools", maxPools, "use fewer LoadBalancers that have endpoints of their own"},
		{"endpoints, counted in each pool", maxEndpoints, "use fewer endpoints, or fewer LoadBalancers that have endpoints of their own"},
		{"ports, of all addresses", maxServices, "use fewer ports"},
		{"source ranges, of which each port counts with each of its own", maxRanges, "use fewer ranges, or fewer ports with ranges"},
	}
}

func ofPool(endpoints int) holding { return holding{1, endpoints, 0, 0} }

func ofFrontend(ranges int) holding { return holding{0, 0, 1, ranges} }

// shares is how much each tenant has, and all of them together.
type shares struct {
	of  map[string]holding
	all holding
}

func (s *state) shares() *shares {
	out := &shares{of: map[string]holding{}}
	for id, p := range s.pools {
		out.add(id.Tenant(), ofPool(len(p.endpoints)), 1)
	}
	for _, f := range s.frontends {
		out.add(f.tenant, ofFrontend(len(f.ranges)), 1)
	}
	return out
}

func (s *shares) add(tenant string, h holding, times int) {
	has := s.of[tenant]
	for i := range h {
		has[i] += times * h[i]
		s.all[i] += times * h[i]
	}
	s.of[tenant] = has
}

// takePool counts a pool in the place of the one that was there, nil for none, and refuses it beyond its tenant's share.
func (s *shares) takePool(p model.Pool, old *poolState) error {
	had := holding{}
	if old != nil {
		had = ofPool(len(old.endpoints))
	}
	return s.take(p.ID.Tenant(), ofPool(len(p.Endpoints)), had)
}

// takeFrontend is the same for a frontend.
func (s *shares) takeFrontend(f model.Frontend, old *frontendState) error {
	had := holding{}
	if old != nil && old.tenant == f.Tenant {
		had = ofFrontend(len(old.ranges))
	}
	return s.take(f.Tenant, ofFrontend(len(f.SourceRanges)), had)
}

// take refuses what is beyond a tenant's share. What is no more than before is never refused.
func (s *shares) take(tenant string, wants, had holding) error {
	has := s.of[tenant]
	for i, r := range rooms() {
		more := wants[i] - had[i]
		if more > 0 && has[i]+more > r.size/quarter && s.all[i]+more > r.size-r.size/quarter {
			return fmt.Errorf("tenant %s would have %d %s, at this gateway, where less than a quarter of %d would be left for others; %s", tenant, has[i]+more, r.of, r.size, r.mend)
		}
	}
	s.add(tenant, had, -1)
	s.add(tenant, wants, 1)
	return nil
}
