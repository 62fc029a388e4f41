package ebpf

import (
	"fmt"

	"kubelb.k8c.io/core/model"
)

// maxRanges is the room for source ranges, which all tenants share (source_ranges in bpf/model.h). A frontend takes of it as many as it has, and one
// tenant's frontends a quarter of it at most.
const (
	maxRanges         = 1 << 18
	maxRangesOfTenant = maxRanges / 4
)

// shares is how many source ranges each tenant has.
type shares map[string]int

func (s *state) shares() shares {
	out := shares{}
	for _, f := range s.frontends {
		out[f.tenant] += len(f.ranges)
	}
	return out
}

// take counts a frontend in the place of the one that was there, and refuses what is beyond its tenant's share. Fewer than before are never refused.
func (s shares) take(f model.Frontend, old *frontendState) error {
	tenant, had := f.Pool.Tenant(), 0
	if old != nil && old.tenant == tenant {
		had = len(old.ranges)
	}
	if has := s[tenant] - had + len(f.SourceRanges); has > maxRangesOfTenant && len(f.SourceRanges) > had {
		return fmt.Errorf("with its %d source ranges tenant %s would have %d at this gateway, where each port counts with each of its ranges: %d are what one tenant may have; use fewer ranges, or fewer ports with ranges",
			len(f.SourceRanges), tenant, has, maxRangesOfTenant)
	}
	s[tenant] += len(f.SourceRanges) - had
	return nil
}
