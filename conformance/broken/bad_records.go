package broken

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// inBadRecords returns faults in what happens to invalid records. A backend that corrects a record does not refuse it.
func inBadRecords() []Mutation {
	bad := func(name string, change func(*memory, *dataplane.Change)) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"bad-records"}, change: change}
	}
	correct := func(name string, edit func(*memory, *model.Frontend)) Mutation {
		return bad(name, editFrontends(edit))
	}
	return []Mutation{
		correct("serves-pools-of-other-tenants", func(_ *memory, f *model.Frontend) { f.Tenant = f.Pool.Tenant() }),
		correct("serves-pools-of-the-other-family", usePoolOfFamily),
		correct("makes-up-target-ports", func(_ *memory, f *model.Frontend) {
			if f.TargetPort == 0 {
				f.TargetPort = f.Port
			}
		}),
		correct("masks-source-ranges", func(_ *memory, f *model.Frontend) {
			f.SourceRanges = slices.Clone(f.SourceRanges)
			for i, r := range f.SourceRanges {
				f.SourceRanges[i] = r.Masked()
			}
		}),
		correct("drops-ranges-of-the-other-family", func(_ *memory, f *model.Frontend) {
			f.SourceRanges = slices.DeleteFunc(slices.Clone(f.SourceRanges), func(r netip.Prefix) bool { return r.Addr().Is4() != f.VIP.Is4() })
		}),
		correct("restricts-if-there-are-ranges", func(_ *memory, f *model.Frontend) { f.Restricted = f.Restricted || len(f.SourceRanges) > 0 }),
		correct("shortens-affinity-to-a-day", func(_ *memory, f *model.Frontend) { f.AffinityTimeout = min(f.AffinityTimeout, 24*time.Hour) }),
		correct("takes-negative-timeouts-as-none", func(_ *memory, f *model.Frontend) { f.IdleTimeout = max(f.IdleTimeout, 0) }),
		correct("takes-unknown-forwarding-as-nat", func(_ *memory, f *model.Frontend) {
			if f.Forwarding > model.Direct {
				f.Forwarding = model.NAT
			}
		}),
		correct("ignores-redirects-of-udp", func(_ *memory, f *model.Frontend) {
			if f.Protocol == model.UDP {
				f.Redirect = model.Redirect{}
			}
		}),
		correct("lowers-limits-of-redirects", func(_ *memory, f *model.Frontend) { f.Redirect.Limit = min(f.Redirect.Limit, model.MaxRedirects) }),
		bad("takes-weight-0-as-1", endpoints(func(_ *memory, e *model.Endpoint) { e.Weight = max(e.Weight, 1) })),
		bad("takes-unknown-states-as-active", endpoints(func(_ *memory, e *model.Endpoint) {
			if e.State > model.Unhealthy {
				e.State = model.Active
			}
		})),
		bad("drops-endpoints-with-a-used-id", keepEndpoints(func(first, e model.Endpoint, before []model.Endpoint) bool {
			return !slices.ContainsFunc(before, func(o model.Endpoint) bool { return o.ID == e.ID })
		})),
		bad("drops-endpoints-of-a-second-family", keepEndpoints(func(first, e model.Endpoint, _ []model.Endpoint) bool { return e.Address.Is4() == first.Address.Is4() })),
		bad("takes-mapped-addresses-as-ipv4", endpoints(func(_ *memory, e *model.Endpoint) { e.Address = e.Address.Unmap() })),
		bad("a-bad-pool-fails-all-pools", func(_ *memory, c *dataplane.Change) {
			if slices.ContainsFunc(c.UpsertPools, func(p model.Pool) bool { return p.Validate() != nil }) {
				c.UpsertPools = slices.DeleteFunc(c.UpsertPools, func(p model.Pool) bool { return p.Validate() == nil })
			}
		}),
		{Name: "refuses-without-a-reason", CaughtBy: []string{"bad-records"}, result: func(r *dataplane.Result) {
			for i := range r.Failed {
				r.Failed[i].Message = ""
			}
		}},
		{Name: "names-another-port", CaughtBy: []string{"bad-records"}, result: func(r *dataplane.Result) {
			for i := range r.Failed {
				r.Failed[i].Frontend.Port ^= 1
			}
		}},
		{Name: "names-only-the-first-bad-record", CaughtBy: []string{"bad-records"}, result: func(r *dataplane.Result) {
			r.Failed = r.Failed[:min(len(r.Failed), 1)]
		}},
	}
}

// inFailedUpdates returns faults in what happens to records whose update is refused.
func inFailedUpdates() []Mutation {
	return []Mutation{
		{Name: "claims-failed-updates", CaughtBy: []string{"failed-updates", "bad-records"}, claimsRefused: true},
		{Name: "forgets-records-whose-update-failed", CaughtBy: []string{"failed-updates"}, forgetsRefused: true},
		{Name: "deletes-frontends-whose-update-failed", CaughtBy: []string{"failed-updates"}, after: func(_ records, failed []dataplane.RecordError) (d model.Delta) {
			for _, f := range failed {
				if f.Pool == "" {
					d.DeleteFrontends = append(d.DeleteFrontends, f.Frontend)
				}
			}
			return d
		}},
		{Name: "empties-pools-whose-update-failed", CaughtBy: []string{"failed-updates"}, after: func(former records, failed []dataplane.RecordError) (d model.Delta) {
			for _, f := range failed {
				if p, had := former.pools[f.Pool]; had {
					d.UpsertPools = append(d.UpsertPools, model.Pool{ID: p.ID, Tenant: p.Tenant})
				}
			}
			return d
		}},
		{Name: "applies-valid-endpoints-of-bad-pools", CaughtBy: []string{"failed-updates"}, before: func(former records, c dataplane.Change) (d model.Delta) {
			for _, p := range c.UpsertPools {
				if _, had := former.pools[p.ID]; had && p.Validate() != nil {
					p.Tenant, p.Endpoints = former.pools[p.ID].Tenant, slices.DeleteFunc(slices.Clone(p.Endpoints), func(e model.Endpoint) bool { return e.Weight == 0 })
					d.UpsertPools = append(d.UpsertPools, p)
				}
			}
			return d
		}},
		{Name: "applies-target-ports-of-bad-frontends", CaughtBy: []string{"failed-updates"}, before: func(former records, c dataplane.Change) (d model.Delta) {
			for _, f := range c.UpsertFrontends {
				if old, had := former.frontends[f.FrontendKey]; had && strings.Contains(string(f.Pool), "/missing.") && f.TargetPort != old.TargetPort {
					old.TargetPort = f.TargetPort
					d.UpsertFrontends = append(d.UpsertFrontends, old)
				}
			}
			return d
		}},
	}
}

// usePoolOfFamily replaces the pool of a frontend, if it is of the other family, by one of the frontend's family.
func usePoolOfFamily(m *memory, f *model.Frontend) {
	sameFamily := func(p model.Pool) bool { return len(p.Endpoints) > 0 && p.Endpoints[0].Address.Is4() == f.VIP.Is4() }
	if p, known := m.pools[f.Pool]; !known || len(p.Endpoints) == 0 || sameFamily(p) {
		return
	}
	for id, p := range m.pools {
		if p.Tenant == f.Tenant && sameFamily(p) && p.Validate() == nil {
			f.Pool = id
			return
		}
	}
}

// keepEndpoints removes the endpoints of each pool that keep does not want. keep gets the pool's first endpoint and all that are before this one.
func keepEndpoints(keep func(first, e model.Endpoint, before []model.Endpoint) bool) func(*memory, *dataplane.Change) {
	return pools(func(_ *memory, p *model.Pool) {
		var kept []model.Endpoint
		for i, e := range p.Endpoints {
			if keep(p.Endpoints[0], e, p.Endpoints[:i]) {
				kept = append(kept, e)
			}
		}
		p.Endpoints = kept
	})
}
