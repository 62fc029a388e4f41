package broken

import (
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// inPools returns faults in the use of a pool's endpoints.
func inPools() []Mutation {
	ids := func(name string, edit func(model.Pool, model.Endpoint) string, caughtBy ...string) Mutation {
		return Mutation{Name: name, CaughtBy: caughtBy, change: pools(func(_ *memory, p *model.Pool) {
			for i, e := range p.Endpoints {
				p.Endpoints[i].ID = edit(*p, e)
			}
		})}
	}
	only := func(n int) func(*memory, *model.Pool) {
		return func(_ *memory, p *model.Pool) { p.Endpoints = p.Endpoints[:min(n, len(p.Endpoints))] }
	}
	return []Mutation{
		{Name: "gives-the-first-endpoint-8-percent-more", CaughtBy: []string{"uniform", "maglev-table"}, change: pools(func(_ *memory, p *model.Pool) { favour(p, 0, 108) })},
		{Name: "gives-the-last-endpoint-8-percent-less", CaughtBy: []string{"uniform", "maglev-table"}, change: pools(func(_ *memory, p *model.Pool) { favour(p, len(p.Endpoints)-1, 92) })},
		{Name: "takes-weight-100-as-108", CaughtBy: []string{"maglev-table"}, change: endpoints(func(_ *memory, e *model.Endpoint) {
			if e.Weight == 100 {
				e.Weight = 108
			}
		})},
		{Name: "caps-weights-at-100", CaughtBy: []string{"weights", "maglev-table"}, change: endpoints(func(_ *memory, e *model.Endpoint) { e.Weight = min(e.Weight, 100) })},
		{Name: "gives-light-endpoints-nothing", CaughtBy: []string{"weights"}, change: pools(func(_ *memory, p *model.Pool) {
			heaviest := slices.MaxFunc(append(slices.Clone(p.Endpoints), model.Endpoint{}), func(a, b model.Endpoint) int { return int(a.Weight) - int(b.Weight) }).Weight
			p.Endpoints = slices.DeleteFunc(p.Endpoints, func(e model.Endpoint) bool { return int(e.Weight)*200 < int(heaviest) && e.Weight > 0 })
		})},
		{Name: "ignores-weights-over-udp", CaughtBy: []string{"weights"}, change: evenOver(model.UDP)},
		{Name: "ignores-weights-over-tcp", CaughtBy: []string{"weights"}, change: evenOver(model.TCP)},
		{Name: "rounds-weights-to-powers-of-two", CaughtBy: []string{"maglev-table"}, change: endpoints(func(_ *memory, e *model.Endpoint) {
			rounded := uint16(1)
			for rounded <= e.Weight/2 {
				rounded *= 2
			}
			e.Weight = min(e.Weight, rounded)
		})},
		{Name: "uses-100-endpoints-only", CaughtBy: []string{"uniform"}, change: pools(only(100))},
		{Name: "uses-128-endpoints-only", CaughtBy: []string{"maglev-table", "uniform"}, change: pools(only(128))},
		{Name: "uses-255-endpoints-only", CaughtBy: []string{"uniform"}, change: pools(only(255))},
		{Name: "removes-unhealthy-endpoints", CaughtBy: []string{"maglev-table"}, change: pools(func(_ *memory, p *model.Pool) {
			if slices.ContainsFunc(p.Endpoints, func(e model.Endpoint) bool { return e.State == model.Active }) {
				p.Endpoints = slices.DeleteFunc(p.Endpoints, func(e model.Endpoint) bool { return e.State == model.Unhealthy })
			}
		})},
		{Name: "prefers-draining-to-unhealthy-endpoints", CaughtBy: []string{"maglev-table"}, change: pools(func(_ *memory, p *model.Pool) {
			if !slices.ContainsFunc(p.Endpoints, func(e model.Endpoint) bool { return e.State == model.Active }) {
				for i := range p.Endpoints {
					p.Endpoints[i].State = map[model.EndpointState]model.EndpointState{model.Draining: model.Active, model.Unhealthy: model.Unhealthy}[p.Endpoints[i].State]
				}
			}
		})},
		ids("hashes-addresses", func(_ model.Pool, e model.Endpoint) string { return e.Address.String() }, "endpoint-addresses", "maglev-table"),
		ids("hashes-addresses-and-ids", func(_ model.Pool, e model.Endpoint) string { return e.ID + e.Address.String() }, "endpoint-addresses", "maglev-table"),
		ids("hashes-names-of-pools", func(p model.Pool, e model.Endpoint) string { return string(p.ID) + e.ID }, "endpoint-addresses", "maglev-table"),
		ids("hashes-weights", func(_ model.Pool, e model.Endpoint) string { return e.ID + strings.Repeat("+", int(min(e.Weight, 9))) }, "maglev-table"),
		ids("hashes-the-number-of-endpoints", func(p model.Pool, e model.Endpoint) string { return e.ID + strings.Repeat("+", len(p.Endpoints)/6) }, "pool-change-moves-few", "maglev-table"),
		ids("ignores-the-case-of-ids", func(_ model.Pool, e model.Endpoint) string { return strings.ToLower(e.ID) }, "maglev-table"),
		ids("takes-63-bytes-of-ids", func(_ model.Pool, e model.Endpoint) string { return e.ID[:min(len(e.ID), 63)] }, "maglev-table"),
	}
}

// inFamilies returns faults with addresses that change, and with two address families at once.
func inFamilies() []Mutation {
	return []Mutation{
		{Name: "keeps-the-first-address-of-an-id", CaughtBy: []string{"endpoint-addresses"}, change: remember(func(before, now model.Pool) model.Pool {
			for i, e := range now.Endpoints {
				if known := slices.IndexFunc(before.Endpoints, func(o model.Endpoint) bool { return o.ID == e.ID }); known >= 0 {
					now.Endpoints[i].Address = before.Endpoints[known].Address
				}
			}
			return now
		})},
		{Name: "ends-connections-when-an-address-changes", CaughtBy: []string{"endpoint-addresses"}, change: noteMoved, applied: endFlows},
		{Name: "serves-ipv4-only-once-it-has-both", CaughtBy: []string{"both-families"}, change: frontends(func(m *memory, f *model.Frontend) bool {
			for key := range m.frontends {
				if key.VIP.Is4() && f.VIP.Is6() {
					return false
				}
			}
			return true
		})},
		{Name: "deletes-the-port-of-both-families", CaughtBy: []string{"both-families"}, change: func(m *memory, c *dataplane.Change) {
			for _, deleted := range slices.Clone(c.DeleteFrontends) {
				for key := range m.frontends {
					if key.Port == deleted.Port && key.Protocol == deleted.Protocol && key.VIP.Is4() != deleted.VIP.Is4() {
						c.DeleteFrontends = append(c.DeleteFrontends, key)
					}
				}
			}
		}},
		{Name: "an-empty-pool-empties-the-other-family's", CaughtBy: []string{"both-families"}, change: func(m *memory, c *dataplane.Change) {
			if slices.ContainsFunc(c.UpsertPools, func(p model.Pool) bool { return len(p.Endpoints) == 0 }) {
				for id, p := range m.pools {
					c.UpsertPools = append(c.UpsertPools, model.Pool{ID: id, Tenant: p.Tenant})
				}
			}
		}},
		{Name: "a-pool-keeps-its-family", CaughtBy: []string{"both-families"}, change: remember(func(before, now model.Pool) model.Pool {
			if len(before.Endpoints) > 0 && len(now.Endpoints) > 0 && before.Endpoints[0].Address.Is4() != now.Endpoints[0].Address.Is4() {
				return before
			}
			return now
		})},
		{Name: "restricts-both-families-at-once", CaughtBy: []string{"both-families"}, change: func(m *memory, c *dataplane.Change) {
			for _, f := range slices.Clone(c.UpsertFrontends) {
				for key, other := range m.frontends {
					if f.Restricted && !other.Restricted && key.Port == f.Port && key.VIP.Is4() != f.VIP.Is4() {
						other.Restricted = true
						c.UpsertFrontends = append(c.UpsertFrontends, other)
					}
				}
			}
		}},
	}
}

// inSizesOfLimits returns faults in limits and timeouts of certain sizes.
func inSizesOfLimits() []Mutation {
	return []Mutation{
		limit("one-flow-less-than-the-limit-from-100-on", "limits", func(f *model.Frontend) {
			if f.MaxConnections > 100 {
				f.MaxConnections--
			}
		}),
		limit("caps-limits-at-255", "limits", func(f *model.Frontend) { f.MaxConnections = min(f.MaxConnections, 255) }),
		limit("20-percent-more-flows-at-once", "limits", func(f *model.Frontend) { f.MaxConnections += f.MaxConnections / 5 }),
		limit("20-percent-fewer-flows-at-once", "limits", func(f *model.Frontend) { f.MaxConnections -= f.MaxConnections / 5 }),
		limit("limits-udp-flows-only", "limits", func(f *model.Frontend) {
			if f.Protocol == model.TCP {
				f.MaxConnections = 0
			}
		}),
		{Name: "idle-timeouts-are-20-percent-shorter", Breaks: "envoy", CaughtBy: []string{"idle-timeout"}, change: editFrontends(func(_ *memory, f *model.Frontend) { f.IdleTimeout -= f.IdleTimeout / 5 })},
		{Name: "idle-timeouts-are-two-seconds-at-most", Breaks: "envoy", CaughtBy: []string{"idle-timeout"}, change: editFrontends(func(_ *memory, f *model.Frontend) { f.IdleTimeout = min(f.IdleTimeout, 2*time.Second) })},
		{Name: "idle-timeouts-are-a-minute-at-least-from-two-seconds-on", Breaks: "envoy", CaughtBy: []string{"idle-timeout"}, change: editFrontends(func(_ *memory, f *model.Frontend) {
			if f.IdleTimeout > 2*time.Second {
				f.IdleTimeout = max(f.IdleTimeout, time.Minute)
			}
		})},
		limit("20-percent-more-new-flows", "rate-limits", func(f *model.Frontend) { f.MaxNewPerSecond += f.MaxNewPerSecond / 5 }),
		limit("20-percent-fewer-new-flows", "rate-limits", func(f *model.Frontend) { f.MaxNewPerSecond -= f.MaxNewPerSecond / 5 }),
		limit("caps-rates-at-100", "rate-limits", func(f *model.Frontend) { f.MaxNewPerSecond = min(f.MaxNewPerSecond, 100) }),
		limit("limits-the-rate-of-tcp-only", "rate-limits", func(f *model.Frontend) {
			if f.Protocol == model.UDP {
				f.MaxNewPerSecond = 0
			}
		}),
	}
}

func limit(name, caughtBy string, edit func(*model.Frontend)) Mutation {
	return Mutation{Name: name, CaughtBy: []string{caughtBy}, change: editFrontends(func(_ *memory, f *model.Frontend) { edit(f) })}
}

// favour gives one endpoint of several that many per cent of its share.
func favour(p *model.Pool, favoured, percent int) {
	n := len(p.Endpoints)
	if n < 2 || slices.ContainsFunc(p.Endpoints, func(e model.Endpoint) bool { return e.Weight != 1 }) {
		return
	}
	for i := range p.Endpoints {
		p.Endpoints[i].Weight = uint16(100*n - percent)
	}
	p.Endpoints[favoured].Weight = uint16(percent * (n - 1))
}

// evenOver gives frontends of the protocol pools without weights.
func evenOver(protocol model.Protocol) func(*memory, *dataplane.Change) {
	const suffix = ".even"
	return func(_ *memory, c *dataplane.Change) {
		for _, p := range slices.Clone(c.UpsertPools) {
			p.ID += suffix
			p.Endpoints = slices.Clone(p.Endpoints)
			for i := range p.Endpoints {
				p.Endpoints[i].Weight = 1
			}
			c.UpsertPools = append(c.UpsertPools, p)
		}
		for i, f := range c.UpsertFrontends {
			if f.Protocol == protocol {
				c.UpsertFrontends[i].Pool += suffix
			}
		}
	}
}

// noteMoved stores the former addresses of endpoints that have other addresses now.
func noteMoved(m *memory, c *dataplane.Change) {
	m.left = nil
	for _, p := range c.UpsertPools {
		for _, e := range m.held[p.ID].Endpoints {
			if slices.ContainsFunc(p.Endpoints, func(o model.Endpoint) bool { return o.ID == e.ID && o.Address != e.Address }) {
				m.left = append(m.left, e.Address)
			}
		}
		m.held[p.ID] = p
	}
}
