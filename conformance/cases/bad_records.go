package cases

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func badRecords() Case {
	return Case{
		Name: "bad-records",
		Shows: "each kind of invalid record is refused and named, with a reason, alone and among others: pools and frontends with invalid fields, and frontends whose pool is missing, " +
			"of another tenant or of the other family; other records of the change are applied and served",
		Run: func(c *C) {
			c.Serve(30080)
			good, pools := c.Frontend(model.TCP, 1, 80, 30080, "all"), c.neighbours()
			c.Apply(pools, good)
			all := model.Delta{}
			for _, bad := range c.badRecords(func(model.Pool, model.Frontend) {}) {
				good.TargetPort ^= 1 // the neighbour changes, too
				c.requireRefused(bad, model.Delta{UpsertFrontends: []model.Frontend{good}})
				all = joined(all, bad)
			}
			good.TargetPort = 30080
			c.requireRefused(all, model.Delta{UpsertPools: []model.Pool{c.Pool("new", 1)}, UpsertFrontends: []model.Frontend{good, c.Frontend(model.TCP, 2, 80, 30080, "new")}})
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(1, 80)), "a frontend beside bad records")
			c.Equal(map[int]int{1: 3}, c.Request(3, "tcp", c.At(2, 80)), "a new frontend with a new pool, both beside bad records")
			for _, f := range all.UpsertFrontends {
				if f.Protocol == model.TCP && f.Port != 0 {
					c.MustRefuse("tcp", netip.AddrPortFrom(f.VIP, f.Port))
				}
			}
			// A refused frontend is taken once it is valid.
			orphan := c.Frontend(model.TCP, 3, 80, 30080, "late")
			c.requireRefused(model.Delta{UpsertFrontends: []model.Frontend{orphan}}, model.Delta{})
			c.Apply([]model.Pool{c.Pool("late", 0)}, orphan)
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(3, 80)))
		},
	}
}

func failedUpdates() Case {
	return Case{
		Name: "failed-updates",
		Shows: "a record whose update is refused serves on in its former state: it keeps its digest, its connections and UDP flows continue, and new flows are served; " +
			"the next valid update is applied",
		Run: func(c *C) {
			c.Serve(30080)
			held := model.Snapshot{Pools: c.neighbours()}
			updates := c.badRecords(func(pool model.Pool, f model.Frontend) {
				held.Pools, held.Frontends = append(held.Pools, pool), append(held.Frontends, f)
			})
			held.Pools = append(held.Pools, c.Pool("used", 0, 1))
			held.Frontends = append(held.Frontends, c.Frontend(model.TCP, 1, 80, 30080, "used"), c.Frontend(model.UDP, 1, 80, 30080, "used"))
			held = held.Canonical()
			c.Apply(held.Pools, held.Frontends...)
			streams, flows := c.openStreams(4), c.openFlows(4)
			broken := c.Pool("used", 2, 3)
			broken.Endpoints[1].Weight = 0
			failing := model.Delta{UpsertPools: []model.Pool{broken}}
			for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
				failing.UpsertFrontends = append(failing.UpsertFrontends, c.Frontend(protocol, 1, 80, 30081, "missing"))
			}
			for _, update := range updates {
				failing = joined(failing, update)
			}
			// A record that fails for the second time must not lose what it has.
			for range 2 {
				c.requireRefused(failing, model.Delta{})
				c.requireHeld(held)
				c.requireAlive(streams, flows)
				for _, network := range networks {
					c.Equal([]int{0, 1}, slices.Sorted(maps.Keys(c.Request(40, network, c.At(1, 80)))), "%s: new flows meet others than the former endpoints", network)
				}
			}
			for _, f := range held.Frontends {
				_, err := c.Lab.A.Request(strings.ToLower(f.Protocol.String()), netip.AddrPortFrom(f.VIP, f.Port), lab.From{})
				c.NoError(err, "%s, whose update was refused", f.FrontendKey)
			}
			c.Apply([]model.Pool{c.Pool("used", 2)}, c.Frontend(model.TCP, 1, 80, 30080, "used"))
			c.Equal(map[int]int{2: 3}, c.Request(3, "tcp", c.At(1, 80)))
		},
	}
}

// requireHeld requires that the dataplane holds exactly the snapshot.
func (c *C) requireHeld(want model.Snapshot) {
	held, err := c.Gateway.Process.Applied(c.ctx)
	c.NoError(err)
	digests := want.Digests()
	c.Equal(digests.Pools, held.Pools, "the pools that the backend holds")
	c.Equal(digests.Frontends, held.Frontends, "the frontends that the backend holds")
}

// requireRefused applies both in one change. It requires that the dataplane refuses and names all records of bad, which keep the digests that they
// had, and holds all of good.
func (c *C) requireRefused(bad, good model.Delta) {
	before, err := c.Gateway.Process.Applied(c.ctx)
	c.NoError(err)
	result, err := c.Gateway.Change(joined(bad, good))
	c.NoError(err)
	after, err := c.Gateway.Process.Applied(c.ctx)
	c.NoError(err)
	var want, got []string
	for _, p := range bad.UpsertPools {
		want = append(want, dataplane.RecordError{Pool: p.ID}.Record())
		c.Equal(before.Pools[p.ID], after.Pools[p.ID], "the digest of pool %s, which is refused", p.ID)
	}
	for _, f := range bad.UpsertFrontends {
		want = append(want, dataplane.RecordError{Frontend: f.FrontendKey}.Record())
		c.Equal(before.Frontends[f.FrontendKey], after.Frontends[f.FrontendKey], "the digest of %s with pool %s, which is refused", f.FrontendKey, f.Pool)
	}
	for _, failed := range result.Failed {
		got = append(got, failed.Record())
		c.NotEmpty(failed.Message, "%s is refused without a reason", failed.Record())
		c.Logf("%s: %s", failed.Record(), failed.Message)
	}
	c.ElementsMatch(want, got, "the records that are refused")
	for _, p := range good.UpsertPools {
		c.Equal(p.Digest(), after.Pools[p.ID], "the digest of pool %s", p.ID)
	}
	for _, f := range good.UpsertFrontends {
		c.Equal(f.Digest(), after.Frontends[f.FrontendKey], "the digest of %s", f.FrontendKey)
	}
}

// joined returns a delta with the upserts of both.
func joined(a, b model.Delta) model.Delta {
	return model.Delta{UpsertPools: slices.Concat(a.UpsertPools, b.UpsertPools), UpsertFrontends: slices.Concat(a.UpsertFrontends, b.UpsertFrontends)}
}

// neighbours returns valid pools, which bad records refer to: one of each family, and one of another tenant.
func (c *C) neighbours() []model.Pool {
	other, foreign := c.Pool("other-family"), c.Pool("all", 0)
	address := lab.EndpointAddress(!c.V4, 0)
	other.Endpoints = []model.Endpoint{{ID: address.String(), Address: address, Weight: 1}}
	foreign.ID, foreign.Tenant = c.PoolID(otherTenant, "all"), otherTenant
	return []model.Pool{c.Pool("all", 0), other, foreign}
}

// badRecords returns changes with one bad record each. Before that it calls held with a valid pool and a valid frontend of that pool, which the bad
// record would change. Each frontend has its own port, and none has port 80.
func (c *C) badRecords(held func(model.Pool, model.Frontend)) []model.Delta {
	var out []model.Delta
	port := uint16(1000)
	for _, name := range slices.Sorted(maps.Keys(badPools)) {
		pool := c.Pool(name, 0, 1)
		held(pool, c.Frontend(model.TCP, 1, port, 30080, name))
		port++
		pool.Endpoints = slices.Clone(pool.Endpoints)
		badPools[name](c, &pool)
		out = append(out, model.Delta{UpsertPools: []model.Pool{pool}})
	}
	kinds := badFrontends()
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		protocol := model.TCP
		if strings.HasPrefix(name, "udp-") {
			protocol = model.UDP
		}
		f := c.Frontend(protocol, 1, port, 30080, name)
		held(c.Pool(name, 0, 1), f)
		port++
		f.Pool = c.PoolID(tenant, "all")
		kinds[name](c, &f)
		out = append(out, model.Delta{UpsertFrontends: []model.Frontend{f}})
	}
	return out
}

// badPools make a pool with two endpoints invalid, by a name for the pool.
var badPools = map[string]func(*C, *model.Pool){
	"no-tenant":     func(_ *C, p *model.Pool) { p.Tenant = "" },
	"other-tenant":  func(_ *C, p *model.Pool) { p.Tenant = otherTenant },
	"no-id":         func(_ *C, p *model.Pool) { p.Endpoints[0].ID = "" },
	"long-id":       func(_ *C, p *model.Pool) { p.Endpoints[0].ID = strings.Repeat("x", model.MaxEndpointID+1) },
	"id-twice":      func(_ *C, p *model.Pool) { p.Endpoints[1].ID = p.Endpoints[0].ID },
	"weight-0":      func(_ *C, p *model.Pool) { p.Endpoints[1].Weight = 0 },
	"unknown-state": func(_ *C, p *model.Pool) { p.Endpoints[1].State = model.Unhealthy + 1 },
	"both-families": func(c *C, p *model.Pool) { p.Endpoints[1].Address = lab.EndpointAddress(!c.V4, 1) },
	"mapped": func(_ *C, p *model.Pool) {
		p.Endpoints[1].Address = netip.AddrFrom16(lab.EndpointAddress(true, 1).As16())
	},
	"no-address": func(_ *C, p *model.Pool) { p.Endpoints[1].Address = netip.Addr{} },
}

// badFrontends make a frontend invalid, by a name. Those whose name begins with udp- are for UDP.
func badFrontends() map[string]func(*C, *model.Frontend) {
	next := func(c *C, v4 bool) netip.Addr { return c.Lab.GatewayAddress(v4, 1) }
	inside := func(c *C) netip.Prefix { return c.network("192.0.2.0/24", "2001:db8:c::/64") }
	return map[string]func(*C, *model.Frontend){
		"port-0":               func(_ *C, f *model.Frontend) { f.Port = 0 },
		"missing-pool":         func(c *C, f *model.Frontend) { f.Pool = c.PoolID(tenant, "missing") },
		"pool-of-other-tenant": func(c *C, f *model.Frontend) { f.Pool = c.PoolID(otherTenant, "all") },
		"other-tenant":         func(_ *C, f *model.Frontend) { f.Tenant, f.Owner = otherTenant, ownerOf(otherTenant) },
		"pool-of-other-family": func(c *C, f *model.Frontend) { f.Pool = c.PoolID(tenant, "other-family") },
		"udp-other-family":     func(c *C, f *model.Frontend) { f.Pool = c.PoolID(tenant, "other-family") },
		"no-pool":              func(_ *C, f *model.Frontend) { f.Pool = "" },
		"no-tenant":            func(_ *C, f *model.Frontend) { f.Tenant = "" },
		"target-port-0":        func(_ *C, f *model.Frontend) { f.TargetPort = 0 },
		"unknown-forwarding":   func(_ *C, f *model.Frontend) { f.Forwarding = model.Direct + 1 },
		"affinity-of-25-hours": func(_ *C, f *model.Frontend) { f.AffinityTimeout = 25 * time.Hour },
		"negative-idle":        func(_ *C, f *model.Frontend) { f.IdleTimeout = -time.Second },
		"ranges-unrestricted":  func(c *C, f *model.Frontend) { f.SourceRanges = []netip.Prefix{inside(c)} },
		"unmasked-range": func(c *C, f *model.Frontend) {
			f.Restricted, f.SourceRanges = true, []netip.Prefix{netip.PrefixFrom(c.Lab.A.Address(c.V4), inside(c).Bits())}
		},
		"range-of-other-family": func(c *C, f *model.Frontend) {
			f.Restricted, f.SourceRanges = true, []netip.Prefix{inside(c), {}}
			f.SourceRanges[1] = netip.PrefixFrom(lab.EndpointAddress(!c.V4, 0), lab.EndpointAddress(!c.V4, 0).BitLen())
		},
		"redirect-to-other-family": func(c *C, f *model.Frontend) { f.Redirect = model.Redirect{Next: next(c, !c.V4), Limit: 1} },
		"redirect-limit-0":         func(c *C, f *model.Frontend) { f.Redirect = model.Redirect{Next: next(c, c.V4)} },
		"redirect-limit-16": func(c *C, f *model.Frontend) {
			f.Redirect = model.Redirect{Next: next(c, c.V4), Limit: model.MaxRedirects + 1}
		},
		"udp-redirect": func(c *C, f *model.Frontend) { f.Redirect = model.Redirect{Next: next(c, c.V4), Limit: 1} },
		"transparent-redirect": func(c *C, f *model.Frontend) {
			f.Forwarding, f.Redirect = model.Transparent, model.Redirect{Next: next(c, c.V4), Limit: 1}
		},
		"udp-proxy-protocol": func(_ *C, f *model.Frontend) { f.ProxyProtocol = true },
	}
}
