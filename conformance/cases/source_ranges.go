package cases

import (
	"fmt"
	"net/netip"
	"slices"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func sourceRanges() Case {
	return Case{
		Name: "source-ranges",
		Shows: "exactly the clients inside the source ranges are served, over TCP and UDP, and others get no answer: for single addresses, small, large, adjacent, overlapping and many networks, " +
			"the whole Internet, and none; a change takes effect at once, and flows of clients that stay inside continue; other frontends are not affected",
		Needs: []dataplane.Feature{dataplane.SourceRanges},
		Run: func(c *C) {
			c.Serve(30080)
			t := &rangesTrial{C: c, lists: c.rangeLists(), clients: []netip.Addr{c.Lab.A.Address(c.V4)}}
			a := c.network("192.0.2.0/24", "2001:db8:c::/64")
			t.apply(0, []netip.Prefix{a})
			streams, flows := c.openStreams(2), c.openFlows(2) // before A has more addresses to begin them at
			added, err := c.Lab.Clients(c.V4, 100)
			c.NoError(err)
			for _, client := range added {
				t.clients = append(t.clients, client.Address)
			}
			_, err = c.Lab.A.RequestFromEach("tcp", c.At(1, 81), added) // the gateway learns their MAC addresses
			c.NoError(err)
			// Each list is used by another frontend in each round. A is always inside the ranges of the last one.
			for round, withA := range [][]netip.Prefix{{a}, {only(c.Lab.A.Address(c.V4))}, {c.network("0.0.0.0/0", "::/0")}} {
				t.apply(round*5, withA)
				c.requireAlive(streams, flows)
				t.requireExact(round * 5)
				for _, network := range networks {
					c.Equal(map[int]int{0: 1}, c.Request(1, network, c.At(1, 81)), "%s to a frontend without source ranges", network)
				}
			}
		},
	}
}

// rangesTrial has a frontend for each list of source ranges.
type rangesTrial struct {
	*C
	lists   [][]netip.Prefix
	clients []netip.Addr // of A
}

// rangesPort is the port of the first of these frontends.
const rangesPort = 1000

// list returns the list of the i-th frontend, which changes with the shift.
func (t *rangesTrial) list(i, shift int) []netip.Prefix { return t.lists[(i+shift)%len(t.lists)] }

// apply gives each frontend a list. Frontends of port 80 get the list withA, and those of port 81 have no ranges.
func (t *rangesTrial) apply(shift int, withA []netip.Prefix) {
	var d model.Delta
	d.UpsertPools = []model.Pool{t.Pool("all", 0)}
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		restricted := func(port uint16, ranges []netip.Prefix) {
			f := t.Frontend(protocol, 1, port, 30080, "all")
			f.Restricted, f.SourceRanges = true, ranges
			d.UpsertFrontends = append(d.UpsertFrontends, f)
		}
		for i := range t.lists {
			restricted(rangesPort+uint16(i), t.list(i, shift))
		}
		restricted(80, withA)
		d.UpsertFrontends = append(d.UpsertFrontends, t.Frontend(protocol, 1, 81, 30080, "all"))
	}
	t.mustChange(d)
}

// requireExact requires that the clients inside the ranges of each frontend are served, and that all others get no answer. Of A's clients it tries those
// at both ends of each range, and their neighbours.
func (t *rangesTrial) requireExact(shift int) {
	type group struct {
		host   *lab.Host
		inside bool
	}
	groups := map[group][]lab.Try{}
	for i := range t.lists {
		ranges, to := t.list(i, shift), t.At(1, rangesPort+uint16(i))
		add := func(host *lab.Host, client netip.Addr) {
			for _, network := range networks {
				g := group{host, contains(ranges, client)}
				groups[g] = append(groups[g], lab.Try{Network: network, To: to, From: client})
			}
		}
		for _, client := range t.chosenClients(ranges) {
			add(t.Lab.A, client)
		}
		add(t.Lab.B, t.Lab.B.Address(t.V4))
	}
	for g, tries := range groups {
		want, where := lab.NoAnswer, "outside"
		if g.inside {
			want, where = lab.Answered, "inside"
		}
		for try, reply := range g.host.TryAll(tries, g.inside) {
			t.Equal(want, reply, "%s from %s, which is %s %v", try.Network, try.From, where, t.list(int(try.To.Port()-rangesPort), shift))
		}
	}
}

// chosenClients returns the clients of A at both ends of each range, those next to them, and the first and the last one. Of many ranges it takes the first
// and the last ones.
func (t *rangesTrial) chosenClients(ranges []netip.Prefix) []netip.Addr {
	const most = 16
	var ends []netip.Addr
	for i, address := range t.clients[1:] {
		if before := t.clients[i]; contains(ranges, before) != contains(ranges, address) {
			ends = append(ends, before, address)
		}
	}
	if len(ends) > 2*most {
		ends = slices.Concat(ends[:most], ends[len(ends)-most:])
	}
	ends = append(ends, t.clients[0], t.clients[1], t.clients[len(t.clients)-1])
	slices.SortFunc(ends, netip.Addr.Compare)
	return slices.Compact(ends)
}

// rangeLists returns lists of ranges. In both families, addresses of A's network end in the same bytes.
func (c *C) rangeLists() [][]netip.Prefix {
	// block returns the network of 2^bits addresses of A's segment that begins with this byte.
	block := func(first byte, bits int) netip.Prefix {
		a := c.Lab.ClientAddress(c.V4, int(first))
		return netip.PrefixFrom(a, a.BitLen()-bits).Masked()
	}
	many := make([]netip.Prefix, 0, 128)
	for i := range 79 {
		many = append(many, c.network(fmt.Sprintf("10.0.%d.0/24", i), fmt.Sprintf("2001:db8:1%02d::/48", i)))
	}
	for first := byte(121); first < 219; first += 2 {
		many = append(many, block(first, 0))
	}
	b := c.network("198.18.1.0/24", "2001:db8:d::/64")
	return [][]netip.Prefix{
		{c.network("192.0.2.0/24", "2001:db8:c::/64")},
		{b},
		{},
		{only(c.Lab.A.Address(c.V4))},
		{block(130, 0)},
		{block(132, 1)},
		{block(132, 2)},
		{block(128, 6)},
		{block(128, 7)},
		{block(121, 0), block(140, 2), block(192, 5)},
		{block(121, 0), block(140, 2), block(160, 3), block(176, 0), b},
		{block(128, 1), block(130, 0), block(131, 0), block(132, 2)}, // adjacent
		{block(160, 5), block(128, 6), block(170, 0), block(128, 0)}, // overlapping, in no order
		{c.network("0.0.0.0/0", "::/0")},
		{c.network("0.0.0.0/0", "::/0"), block(130, 0)},
		{c.network("0.0.0.0/1", "8000::/1")},
		{c.network("128.0.0.0/1", "::/1")},
		{c.network("192.0.0.0/23", "2001:db8:8::/46")}, // the networks before and behind A's
		{c.network("192.0.3.0/24", "2001:db8:b::/64"), c.network("192.0.1.0/24", "2001:db8:d::/64")},
		many,
	}
}

// only returns the network that has one address.
func only(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func contains(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}
