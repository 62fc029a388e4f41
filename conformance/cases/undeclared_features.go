package cases

import (
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

func undeclaredFeatures() Case {
	return Case{
		Name:  "undeclared-features",
		Shows: "a frontend that needs an undeclared feature is refused, and not served without the feature",
		Run: func(c *C) {
			c.Serve(30080)
			plain := c.Frontend(model.TCP, 1, 80, 30080, "all")
			for feature, need := range map[dataplane.Feature]func(*model.Frontend){
				dataplane.SourceRanges: func(f *model.Frontend) {
					f.Restricted, f.SourceRanges = true, []netip.Prefix{c.network("198.18.99.0/24", "2001:db8:99::/64")}
				},
				dataplane.Affinity:      func(f *model.Frontend) { f.AffinityTimeout = time.Hour },
				dataplane.Transparent:   func(f *model.Frontend) { f.Forwarding = model.Transparent },
				dataplane.Direct:        func(f *model.Frontend) { f.Forwarding = model.Direct },
				dataplane.ProxyProtocol: func(f *model.Frontend) { f.ProxyProtocol = true },
				dataplane.Limits:        func(f *model.Frontend) { f.MaxConnections = 1 },
				dataplane.RateLimits:    func(f *model.Frontend) { f.MaxNewPerSecond = 1 },
				dataplane.Redirects:     func(f *model.Frontend) { f.Redirect = model.Redirect{Next: c.frontAddress(1), Limit: 1} },
				dataplane.IdleTimeout:   func(f *model.Frontend) { f.IdleTimeout = time.Minute },
			} {
				if slices.Contains(c.Description.Features, feature) {
					continue
				}
				refused := c.Frontend(model.TCP, 2, 80, 30080, "all")
				need(&refused)
				result, _, err := c.Gateway.TryApply(model.Snapshot{Pools: []model.Pool{c.Pool("all", 0)}, Frontends: []model.Frontend{plain, refused}})
				c.NoError(err)
				c.Len(result.Failed, 1, "%s is not declared", feature)
				c.Equal(refused.FrontendKey, result.Failed[0].Frontend)
				_, err = c.Lab.A.Request("tcp", c.At(2, 80), from(0))
				c.Error(err, "a frontend is served although %s is not declared", feature)
			}
			c.Apply([]model.Pool{c.Pool("all", 0)}, plain)
			c.Equal(map[int]int{0: 3}, c.Request(3, "tcp", c.At(1, 80)))
		},
	}
}

// network returns the prefix of the run's address family.
func (c *C) network(four, six string) netip.Prefix {
	if c.V4 {
		return netip.MustParsePrefix(four)
	}
	return netip.MustParsePrefix(six)
}
