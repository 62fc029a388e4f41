package cases

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func render() Case {
	return Case{
		Name:  "render",
		Shows: "Render changes nothing, does not depend on what is held or on the order of records, names the address and port of each frontend and the address of each endpoint, and shows every difference between two snapshots",
		Run: func(c *C) {
			c.Serve(30080)
			snapshot := c.renderedSnapshot()
			other := c.gateway(1) // where no other process of the backend starts meanwhile
			clean := other.footprint()
			fresh, err := other.load(c.backends.Tested)
			c.NoError(err)
			text := c.render(fresh, snapshot)
			fresh.Stop()
			other.requireNothingLeft(clean)
			held := model.Snapshot{Pools: []model.Pool{c.Pool("all", 0)}, Frontends: []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all")}}
			c.Gateway.Apply(held)
			before := c.Gateway.footprint()
			c.Equal(text, c.render(c.Gateway.Process, snapshot), "a process before Configure, and one that holds another model")
			for range 3 {
				c.Equal(text, c.render(c.Gateway.Process, shuffled(snapshot)), "another order of records")
			}
			for _, named := range c.namesIn(snapshot) {
				c.Contains(text, named)
			}
			for what, other := range c.differing(snapshot) {
				c.NotEqual(text, c.render(c.Gateway.Process, other), "a snapshot with another %s", what)
			}
			c.Gateway.requireNothingLeft(before)
			applied, err := c.Gateway.Process.Applied(c.ctx)
			c.NoError(err)
			c.Equal(held.Digests(), applied.Digests)
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(1, 80)))
		},
	}
}

// render renders a snapshot within the time of a call.
func (c *C) render(p Process, s model.Snapshot) string {
	text, err := p.Render(c.ctx, s)
	c.NoError(err)
	return text
}

// renderedSnapshot has pools and frontends of different kinds.
func (c *C) renderedSnapshot() model.Snapshot {
	var out model.Snapshot
	for i := range 3 {
		out.Pools = append(out.Pools, c.Pool(fmt.Sprint("pool", i), 2*i, 2*i+1))
	}
	out.Pools = append(out.Pools, c.Pool("none"))
	for i := range 6 {
		protocol := []model.Protocol{model.TCP, model.UDP}[i%2]
		f := c.Frontend(protocol, 11+i/2, uint16(10080+i), uint16(31080+i), fmt.Sprint("pool", i%3))
		if i == 4 && c.has(dataplane.SourceRanges) {
			f.Restricted = true
			for network := range 3 {
				a := c.VIP(100 + network)
				f.SourceRanges = append(f.SourceRanges, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		out.Frontends = append(out.Frontends, f)
	}
	out.Frontends = append(out.Frontends, c.Frontend(model.TCP, 20, 10099, 31099, "none"))
	return out.Canonical()
}

// shuffled returns the same records in another order.
func shuffled(s model.Snapshot) model.Snapshot {
	out := model.Snapshot{Pools: slices.Clone(s.Pools), Frontends: slices.Clone(s.Frontends)}
	rand.Shuffle(len(out.Pools), func(i, j int) { out.Pools[i], out.Pools[j] = out.Pools[j], out.Pools[i] })
	rand.Shuffle(len(out.Frontends), func(i, j int) { out.Frontends[i], out.Frontends[j] = out.Frontends[j], out.Frontends[i] })
	return out
}

// namesIn returns what a text about the snapshot has to contain. A frontend without endpoints may have no port, since it is refused like any other port.
func (c *C) namesIn(s model.Snapshot) (names []string) {
	for _, p := range s.Pools {
		for _, e := range p.Endpoints {
			names = append(names, e.Address.String())
		}
	}
	for _, f := range s.Frontends {
		names = append(names, f.VIP.String())
		if f.Pool != c.PoolID(tenant, "none") {
			names = append(names, strconv.Itoa(int(f.Port)), strconv.Itoa(int(f.TargetPort)))
		}
	}
	return names
}

// differing returns snapshots that differ from s in one field of a record.
func (c *C) differing(s model.Snapshot) map[string]model.Snapshot {
	out := map[string]model.Snapshot{}
	change := func(what string, edit func(*model.Snapshot)) {
		other := model.Snapshot{Pools: slices.Clone(s.Pools), Frontends: slices.Clone(s.Frontends)}
		for i := range other.Pools {
			other.Pools[i].Endpoints = slices.Clone(other.Pools[i].Endpoints)
		}
		edit(&other)
		out[what] = other.Canonical()
	}
	frontend := func(what string, needs dataplane.Feature, edit func(*model.Frontend)) {
		if needs == "" || c.has(needs) {
			change(what, func(s *model.Snapshot) { edit(&s.Frontends[0]) })
		}
	}
	endpoint := func(s *model.Snapshot) *model.Endpoint {
		i := slices.IndexFunc(s.Pools, func(p model.Pool) bool { return p.ID == c.PoolID(tenant, "pool0") })
		return &s.Pools[i].Endpoints[0]
	}
	change("number of frontends", func(s *model.Snapshot) { s.Frontends = s.Frontends[1:] })
	change("endpoint", func(s *model.Snapshot) { *endpoint(s) = c.Pool("other", 77).Endpoints[0] })
	change("state of an endpoint", func(s *model.Snapshot) { endpoint(s).State = model.Unhealthy })
	if c.has(dataplane.Weights) {
		change("weight of an endpoint", func(s *model.Snapshot) { endpoint(s).Weight = 3 })
	}
	frontend("port", "", func(f *model.Frontend) { f.Port = 20080 })
	frontend("address", "", func(f *model.Frontend) { f.VIP = c.VIP(200) })
	frontend("target port", "", func(f *model.Frontend) { f.TargetPort = 32080 })
	frontend("pool", "", func(f *model.Frontend) { f.Pool = c.PoolID(tenant, "pool2") })
	frontend("source range", dataplane.SourceRanges, func(f *model.Frontend) { f.Restricted = true })
	frontend("affinity", dataplane.Affinity, func(f *model.Frontend) { f.AffinityTimeout = time.Minute })
	frontend("forwarding mode", dataplane.Transparent, func(f *model.Frontend) { f.Forwarding = model.Transparent })
	frontend("idle timeout", dataplane.IdleTimeout, func(f *model.Frontend) { f.IdleTimeout = 77 * time.Second })
	frontend("PROXY protocol", dataplane.ProxyProtocol, func(f *model.Frontend) { f.ProxyProtocol = true })
	frontend("limit", dataplane.Limits, func(f *model.Frontend) { f.MaxConnections = 77 })
	frontend("rate limit", dataplane.RateLimits, func(f *model.Frontend) { f.MaxNewPerSecond = 77 })
	frontend("redirect", dataplane.Redirects, func(f *model.Frontend) { f.Redirect = model.Redirect{Next: c.frontAddress(1), Limit: 1} })
	return out
}
