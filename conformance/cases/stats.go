package cases

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/core/model"
)

func stats() Case {
	return Case{
		Name:  "stats",
		Shows: "counters say what was sent: each connection and UDP flow once, at its frontend and its endpoint; packets, bytes and drops exactly, if the dataplane counts them; they outlive its process and a change of their record, and begin at 0 with a new record",
		Run: func(c *C) {
			c.Serve(30080)
			c.Serve(30081)
			s := &sent{C: c, connections: map[model.FrontendKey]uint64{}, endpoints: map[dataplane.EndpointKey]uint64{}}
			pools := []model.Pool{c.Pool("all", 0, 1), c.Pool("other", 1, 2), c.Pool("single", 3), c.Pool("none")}
			frontends := []model.Frontend{c.Frontend(model.TCP, 1, 80, 30080, "all"), c.Frontend(model.UDP, 1, 80, 30080, "all"), c.Frontend(model.TCP, 1, 81, 30080, "other"),
				c.Frontend(model.TCP, 1, 84, 30080, "single"), c.Frontend(model.TCP, 1, 82, 30080, "none"), c.Frontend(model.TCP, 2, 80, 30080, "all")}
			if c.has(dataplane.SourceRanges) {
				f := c.Frontend(model.UDP, 1, 83, 30080, "all")
				f.Restricted = true
				frontends = append(frontends, f)
			}
			c.Apply(pools, frontends...)
			s.requireFrontends(frontends)
			before := s.read().Drops
			capture, err := c.Lab.A.Capture(func(p lab.Packet) bool { return p.Source.Addr() == c.VIP(1) || p.Target.Addr() == c.VIP(1) })
			c.NoError(err)
			for i, f := range frontends[:3] {
				s.request(f, 5+3*i)
			}
			c.NoError(c.Lab.A.Transfer(addressOf(frontends[3]), transferred))
			for range 2 { // an upload and a download
				s.add(frontends[3], lab.EndpointAddress(c.V4, 3))
			}
			s.requireFrontends(frontends)
			s.requireEndpoints()
			s.requirePackets(frontends[:4], capture.Close())
			c.Empty(increases(before, s.read().Drops), "dropped, although everything was answered")
			s.requireDrops(frontends[4:])

			// A change of other records, and of the pool, leaves a counter alone. One of the record itself may let it begin again.
			pools[0] = c.Pool("all", 0, 1, 3)
			frontends[2].TargetPort = 30081
			c.Apply(pools, frontends...)
			s.mayBegin(frontends[2])
			for _, f := range frontends[:3] {
				s.request(f, 4)
			}
			s.requireFrontends(frontends)
			c.NoError(c.Gateway.Process.Kill())
			c.Gateway.Start()
			s.forgetNotHeld()
			c.Apply(pools, frontends...)
			s.request(frontends[0], 3)
			s.requireFrontends(frontends)

			c.Apply(pools, frontends[1:]...)
			s.connections[frontends[0].FrontendKey] = 0
			s.requireFrontends(frontends[1:])
			c.Apply(pools, frontends...)
			s.requireFrontends(frontends)
			s.request(frontends[0], 2)
			s.requireFrontends(frontends)
		},
	}
}

// sent has what a case has sent.
type sent struct {
	*C
	connections map[model.FrontendKey]uint64
	endpoints   map[dataplane.EndpointKey]uint64
}

func (s *sent) add(f model.Frontend, endpoint netip.Addr) {
	s.connections[f.FrontendKey]++
	s.endpoints[dataplane.EndpointKey{Pool: f.Pool, Endpoint: endpoint.String()}]++
}

// request makes n flows, one after another. A UDP flow has several datagrams.
func (s *sent) request(to model.Frontend, n int) {
	for range n {
		c, err := s.Lab.A.Dial(networkOf(to), addressOf(to), lab.From{})
		s.NoError(err)
		answer, err := lab.RequestAddresses(c, s.Patience)
		s.NoError(err)
		for range 2 {
			if to.Protocol == model.UDP {
				_, err = lab.RequestAddresses(c, s.Patience)
				s.NoError(err)
			}
		}
		s.NoError(c.Close())
		s.add(to, answer.Endpoint)
	}
}

// transferred is how many bytes an upload and a download have. The packets fit into the queue of an interface.
const transferred = 200 << 10

func (s *sent) read() dataplane.Stats {
	stats, err := s.Gateway.Process.Stats(s.ctx)
	s.NoError(err)
	return stats
}

// countTime is how long a dataplane may take to count what it has forwarded.
const countTime = 3 * time.Second

// mayBegin notes the counter of a frontend that has begun at 0 again.
func (s *sent) mayBegin(f model.Frontend) {
	if s.read().Frontends[f.FrontendKey].Connections == 0 {
		s.connections[f.FrontendKey] = 0
	}
}

// forgetNotHeld notes that frontends begin at 0 that the dataplane has lost with its process.
func (s *sent) forgetNotHeld() {
	held, err := s.Gateway.Process.Applied(s.ctx)
	s.NoError(err)
	for key := range s.connections {
		if _, isHeld := held.Frontends[key]; !isHeld {
			s.connections[key] = 0
		}
	}
}

// requireFrontends requires that there are counters of these frontends alone, and that they say what was sent.
func (s *sent) requireFrontends(frontends []model.Frontend) {
	want := map[model.FrontendKey]uint64{}
	for _, f := range frontends {
		want[f.FrontendKey] = s.connections[f.FrontendKey]
	}
	requireEventually(s, want, func() map[model.FrontendKey]uint64 { return connectionsOf(s.read().Frontends) })
}

// requireEndpoints requires that the counters of endpoints say what was sent.
func (s *sent) requireEndpoints() {
	requireEventually(s, s.endpoints, func() map[dataplane.EndpointKey]uint64 {
		got := connectionsOf(s.read().Endpoints)
		maps.DeleteFunc(got, func(key dataplane.EndpointKey, n uint64) bool { return n == 0 && s.endpoints[key] == 0 })
		return got
	})
}

func connectionsOf[K comparable](counters map[K]dataplane.Counter) map[K]uint64 {
	out := map[K]uint64{}
	for key, c := range counters {
		out[key] = c.Connections
	}
	return out
}

// requireEventually requires that the counters are equal, within the time that a dataplane may take to count.
func requireEventually[K comparable](s *sent, want map[K]uint64, read func() map[K]uint64) {
	got := read()
	for begin := time.Now(); !maps.Equal(want, got) && time.Since(begin) < s.Patience.For(countTime); got = read() {
		time.Sleep(50 * time.Millisecond)
	}
	s.Equal(linesOf(want), linesOf(got))
}

func linesOf[K comparable](counts map[K]uint64) []string {
	var out []string
	for key, n := range counts {
		out = append(out, fmt.Sprintf("%v: %d", key, n))
	}
	slices.Sort(out)
	return out
}

// requirePackets requires that packets and bytes of frontends, and of the endpoints of their pools, are those that the client has sent and received. A
// dataplane that does not count them says 0 everywhere.
func (s *sent) requirePackets(frontends []model.Frontend, packets []lab.Packet) {
	type volume struct{ packets, bytes uint64 }
	want := map[model.FrontendKey]volume{}
	inPools := map[model.PoolID]volume{}
	add := func(to volume, packets, bytes uint64) volume { return volume{to.packets + packets, to.bytes + bytes} }
	for _, p := range packets {
		at := p.Target
		if !p.Out {
			at = p.Source
		}
		key := model.FrontendKey{VIP: at.Addr(), Protocol: model.Protocol(p.Protocol), Port: at.Port()}
		want[key] = add(want[key], 1, uint64(p.Length))
	}
	for _, f := range frontends {
		inPools[f.Pool] = add(inPools[f.Pool], want[f.FrontendKey].packets, want[f.FrontendKey].bytes)
	}
	stats := s.read()
	countsPackets, countsBytes := false, false
	for _, c := range slices.Concat(slices.Collect(maps.Values(stats.Frontends)), slices.Collect(maps.Values(stats.Endpoints))) {
		countsPackets, countsBytes = countsPackets || c.Packets > 0, countsBytes || c.Bytes > 0
	}
	require := func(what any, want volume, got dataplane.Counter) {
		if countsPackets {
			s.Equal(want.packets, got.Packets, "packets of %s", what)
		}
		if countsBytes {
			s.Equal(want.bytes, got.Bytes, "bytes of %s", what)
		}
	}
	for _, f := range frontends {
		require(f.FrontendKey, want[f.FrontendKey], stats.Frontends[f.FrontendKey])
	}
	of := map[model.PoolID]dataplane.Counter{}
	for key, c := range stats.Endpoints {
		sum := of[key.Pool]
		of[key.Pool] = dataplane.Counter{Packets: sum.Packets + c.Packets, Bytes: sum.Bytes + c.Bytes}
	}
	for pool, volume := range inPools {
		require("the endpoints of pool "+string(pool), volume, of[pool])
	}
	s.Measuref("packets counted: %v, bytes counted: %v", countsPackets, countsBytes)
}

// reason matches a short word with hyphens.
var reason = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// increases returns the reasons for which more packets were dropped than before, and how many.
func increases(before, after map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for reason, n := range after {
		if n != before[reason] {
			out[reason] = n - before[reason]
		}
	}
	return out
}

// requireDrops sends packets to a frontend without endpoints, and to one that no client may use. A dataplane that counts drops counts each packet once,
// and has different reasons for the two.
func (s *sent) requireDrops(to []model.Frontend) {
	const refused, denied = 4, 7
	before := s.read().Drops
	for range refused {
		s.MustRefuse("tcp", addressOf(to[0]))
	}
	byRefusal := s.requireOneReason(before, refused)
	if !s.has(dataplane.SourceRanges) {
		return
	}
	before = s.read().Drops
	flow, err := s.Lab.A.Dial("udp", addressOf(to[2]), lab.From{})
	s.NoError(err)
	for range denied {
		lab.Send(flow)
	}
	s.NoError(flow.Close())
	byRange := s.requireOneReason(before, denied)
	s.True(byRefusal == "" && byRange == "" || byRefusal != byRange, "one reason, %q, for a frontend without endpoints and for one that no client may use", byRange)
}

// requireOneReason requires that n packets were dropped for one reason, which it returns, or that none was counted.
func (s *sent) requireOneReason(before map[string]uint64, n uint64) string {
	var by map[string]uint64
	isComplete := func() bool {
		by = increases(before, s.read().Drops)
		return slices.Equal(slices.Collect(maps.Values(by)), []uint64{n})
	}
	for begin := time.Now(); !isComplete() && time.Since(begin) < s.Patience.For(shortWait); {
		time.Sleep(20 * time.Millisecond)
	}
	if len(by) == 0 {
		return ""
	}
	s.Len(by, 1, "reasons for %d packets: %v", n, by)
	name := slices.Collect(maps.Keys(by))[0]
	s.Regexp(reason, name)
	s.Equal(n, by[name], "packets dropped for reason %s", name)
	return name
}
