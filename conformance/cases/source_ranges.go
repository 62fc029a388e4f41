package cases

import (
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func sourceRanges() Case {
	return Case{
		Name:  "source-ranges",
		Shows: "clients inside the source ranges are served, others get no answer; a change takes effect at once, and flows of clients that stay inside continue; other frontends are not affected",
		Needs: []dataplane.Feature{dataplane.SourceRanges},
		Run: func(c *C) {
			c.Serve(30080)
			a, b := c.network("192.0.2.0/24", "2001:db8:c::/64"), c.network("198.18.1.0/24", "2001:db8:d::/64")
			exactlyA := netip.PrefixFrom(c.Lab.A.Address(c.V4), c.Lab.A.Address(c.V4).BitLen())
			var streams []*lab.Stream
			var flows []flow
			for _, allowed := range [][]netip.Prefix{{a}, {b}, {a, b}, {exactlyA}, {}} {
				var frontends []model.Frontend
				for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
					f := c.Frontend(protocol, 1, 80, 30080, "all")
					f.Restricted, f.SourceRanges = true, allowed
					frontends = append(frontends, f, c.Frontend(protocol, 1, 81, 30080, "all"))
				}
				c.Apply([]model.Pool{c.Pool("all", 0)}, model.Snapshot{Frontends: frontends}.Canonical().Frontends...)
				if streams == nil {
					streams, flows = c.openStreams(2), c.openFlows(2)
				}
				if c.inside(c.Lab.A, allowed) {
					c.requireAlive(streams, flows)
				}
				for _, client := range []*lab.Host{c.Lab.A, c.Lab.B} {
					inside := c.inside(client, allowed)
					for _, network := range networks {
						if inside {
							_, err := client.Request(network, c.At(1, 80), lab.From{})
							c.NoError(err, "%s from %s, allowed %v", network, client.Name, allowed)
						} else {
							c.True(client.Silent(network, c.At(1, 80)), "%s from %s, allowed %v", network, client.Name, allowed)
						}
						_, err := client.Request(network, c.At(1, 81), lab.From{})
						c.NoError(err, "a frontend without source ranges")
					}
				}
			}
		},
	}
}

func (c *C) inside(client *lab.Host, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(client.Address(c.V4)) })
}
