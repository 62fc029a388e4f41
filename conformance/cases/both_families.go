package cases

import (
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func bothFamilies() Case {
	return Case{
		Name: "both-families",
		Shows: "one gateway serves IPv4 and IPv6 at once, with the same ports over TCP and UDP; a change, a delete, an empty pool or source ranges of one family do not affect the other, " +
			"and a pool may change its family",
		OneFamily: true,
		Run: func(c *C) {
			c.Serve(30080)
			serving := map[bool]int{true: 0, false: 1} // the endpoint of each family
			ranges := map[bool][]netip.Prefix{}
			without := map[bool]bool{}
			var streams []*lab.Stream // of the family that does not change
			check := func(step string) {
				var s model.Snapshot
				for _, v4 := range []bool{true, false} {
					c.inFamily(v4, func() {
						pool := c.Pool(familyPool(v4))
						if endpoint := serving[v4]; endpoint >= 0 {
							pool = c.Pool(familyPool(v4), endpoint)
						}
						s.Pools = append(s.Pools, pool)
						for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
							f := c.Frontend(protocol, 1, 80, 30080, familyPool(v4))
							f.SourceRanges, f.Restricted = ranges[v4], ranges[v4] != nil
							if !without[v4] {
								s.Frontends = append(s.Frontends, f)
							}
							s.Frontends = append(s.Frontends, c.Frontend(protocol, 1, 81, 30080, familyPool(v4)))
						}
					})
				}
				c.applySnapshot(s.Canonical())
				c.requireHeld(s.Canonical())
				for _, v4 := range []bool{true, false} {
					c.inFamily(v4, func() {
						c.requireFamily(step, serving[v4], ranges[v4], without[v4])
					})
				}
				c.requireAlive(streams, nil)
			}
			check("both are new")
			for _, v4 := range []bool{true, false} {
				c.inFamily(!v4, func() { streams = c.openStreamsTo(2, c.At(1, 80)) })
				serving[v4] += 2
				check("one gets another endpoint")
				before := serving[v4]
				serving[v4] = -1
				check("one pool is empty")
				serving[v4] = before
				without[v4] = true
				check("one frontend is deleted")
				without[v4] = false
				check("it is added again")
				if slices.Contains(c.Description.Features, dataplane.SourceRanges) {
					c.inFamily(v4, func() { ranges[v4] = []netip.Prefix{c.network("198.18.1.0/24", "2001:db8:d::/64")} })
					check("one is for others only")
					c.inFamily(v4, func() { ranges[v4] = []netip.Prefix{c.network("0.0.0.0/0", "::/0")} })
					check("one is for everybody of its family")
					ranges[v4] = nil
				}
			}
			c.requirePoolChangesFamily()
		},
	}
}

func familyPool(v4 bool) string { return map[bool]string{true: "v4", false: "v6"}[v4] }

// inFamily runs f in another address family.
func (c *C) inFamily(v4 bool, f func()) {
	defer func(before bool) { c.V4 = before }(c.V4)
	c.V4 = v4
	f()
}

// requireFamily requires what the records of the family say. A is outside of all ranges but that of everybody.
func (c *C) requireFamily(step string, endpoint int, ranges []netip.Prefix, deleted bool) {
	open := ranges == nil || contains(ranges, c.Lab.A.Address(c.V4))
	for _, network := range networks {
		for _, port := range []uint16{80, 81} {
			switch {
			case endpoint < 0 || port == 80 && deleted:
				c.MustRefuse(network, c.At(1, port))
			case port == 80 && !open:
				c.True(c.Lab.A.Silent(network, c.At(1, port)), "%s: %s %s", step, network, c.At(1, port))
			default:
				c.Equal(map[int]int{endpoint: 2}, c.Request(2, network, c.At(1, port)), "%s: %s %s", step, network, c.At(1, port))
			}
		}
	}
}

// requirePoolChangesFamily gives a pool endpoints of the other family, and frontends of that one in place of the former.
func (c *C) requirePoolChangesFamily() {
	id := c.PoolID(tenant, "moves")
	for _, v4 := range []bool{true, false, true} {
		c.inFamily(v4, func() {
			pool, tcp, udp := c.Pool("moves", 2), c.Frontend(model.TCP, 1, 80, 30080, "moves"), c.Frontend(model.UDP, 1, 80, 30080, "moves")
			pool.ID, tcp.Pool, udp.Pool = id, id, id
			c.Apply([]model.Pool{pool}, tcp, udp)
			for _, network := range networks {
				c.Equal(map[int]int{2: 2}, c.Request(2, network, c.At(1, 80)), "a pool that had endpoints of the other family before")
			}
		})
		c.inFamily(!v4, func() {
			_, err := c.Lab.A.Request("tcp", c.At(1, 80), lab.From{})
			c.Error(err, "a frontend of the former family")
		})
	}
}
