package broken

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// inStats returns faults of counters.
func inStats() []Mutation {
	counts := func(name string, edit func(*dataplane.Stats)) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"stats"}, stats: edit}
	}
	// eBPF counts packets and bytes.
	volumes := func(name string, edit func(*dataplane.Counter)) Mutation {
		return Mutation{Name: name, Breaks: "ebpf", CaughtBy: []string{"stats"}, stats: func(s *dataplane.Stats) {
			eachCounter(s.Frontends, func(_ model.FrontendKey, c *dataplane.Counter) { edit(c) })
			eachCounter(s.Endpoints, func(_ dataplane.EndpointKey, c *dataplane.Counter) { edit(c) })
		}}
	}
	return []Mutation{
		counts("counts-no-connection", func(s *dataplane.Stats) {
			eachCounter(s.Frontends, func(_ model.FrontendKey, c *dataplane.Counter) { c.Connections = 0 })
		}),
		counts("counts-connections-twice", func(s *dataplane.Stats) {
			eachCounter(s.Frontends, func(_ model.FrontendKey, c *dataplane.Counter) { c.Connections *= 2 })
		}),
		counts("counts-datagrams-as-flows", func(s *dataplane.Stats) {
			eachCounter(s.Frontends, func(key model.FrontendKey, c *dataplane.Counter) {
				if key.Protocol == model.UDP {
					c.Connections *= 3
				}
			})
		}),
		counts("counts-udp-as-tcp", func(s *dataplane.Stats) {
			for key, c := range s.Frontends {
				twin := key
				twin.Protocol = model.TCP
				if tcp, has := s.Frontends[twin]; has && key.Protocol == model.UDP {
					s.Frontends[twin] = dataplane.Counter{Connections: tcp.Connections + c.Connections}
					s.Frontends[key] = dataplane.Counter{}
				}
			}
		}),
		counts("counts-refused-connections", func(s *dataplane.Stats) {
			eachCounter(s.Frontends, func(key model.FrontendKey, c *dataplane.Counter) {
				if key.Port == 82 {
					c.Connections += s.Drops["refused"]
				}
			})
		}),
		counts("counts-endpoints-in-one", func(s *dataplane.Stats) {
			sums := map[model.PoolID]uint64{}
			eachCounter(s.Endpoints, func(key dataplane.EndpointKey, c *dataplane.Counter) {
				sums[key.Pool], c.Connections = sums[key.Pool]+c.Connections, 0
			})
			for _, key := range slices.SortedFunc(maps.Keys(s.Endpoints), func(a, b dataplane.EndpointKey) int { return strings.Compare(a.Endpoint, b.Endpoint) }) {
				s.Endpoints[key] = dataplane.Counter{Connections: sums[key.Pool]}
				delete(sums, key.Pool)
			}
		}),
		counts("counts-endpoints-of-all-pools", func(s *dataplane.Stats) {
			sums := map[string]uint64{}
			for key, c := range s.Endpoints {
				sums[key.Endpoint] += c.Connections
			}
			eachCounter(s.Endpoints, func(key dataplane.EndpointKey, c *dataplane.Counter) { c.Connections = sums[key.Endpoint] })
		}),
		counts("leaves-out-idle-frontends", func(s *dataplane.Stats) {
			maps.DeleteFunc(s.Frontends, func(_ model.FrontendKey, c dataplane.Counter) bool { return c.Connections == 0 })
		}),
		counts("counts-deleted-frontends", keepCounters()),
		counts("begins-where-a-former-frontend-ended", resumeCounters()),
		counts("counts-served-packets-as-dropped", func(s *dataplane.Stats) {
			for _, c := range s.Frontends {
				s.Drops["refused"] += c.Connections
			}
		}),
		counts("counts-drops-twice", func(s *dataplane.Stats) {
			for reason := range s.Drops {
				s.Drops[reason] *= 2
			}
		}),
		counts("counts-drops-under-two-reasons", func(s *dataplane.Stats) { s.Drops["total"] = s.Drops["refused"] }),
		counts("has-one-reason-for-all-drops", func(s *dataplane.Stats) {
			sum := uint64(0)
			for _, n := range s.Drops {
				sum += n
			}
			s.Drops = map[string]uint64{"dropped": sum}
		}),
		counts("says-reasons-in-sentences", func(s *dataplane.Stats) {
			s.Drops = map[string]uint64{"The port is not served.": s.Drops["refused"], "The client is not allowed.": s.Drops["not-allowed"]}
		}),
		volumes("counts-one-direction", func(c *dataplane.Counter) { c.Packets /= 2 }),
		volumes("counts-bytes-without-headers", func(c *dataplane.Counter) { c.Bytes -= min(c.Bytes, 20*c.Packets) }),
		volumes("counts-bytes-of-frames", func(c *dataplane.Counter) { c.Bytes += 14 * c.Packets }),
		{Name: "counts-no-bytes-of-endpoints", Breaks: "ebpf", CaughtBy: []string{"stats"}, stats: func(s *dataplane.Stats) {
			eachCounter(s.Endpoints, func(_ dataplane.EndpointKey, c *dataplane.Counter) { c.Bytes = 0 })
		}},
		{Name: "counts-proxied-connections-wrongly", CaughtBy: []string{"long-connections"}, stats: func(s *dataplane.Stats) { s.Proxied = 7 }},
	}
}

func eachCounter[K comparable](counters map[K]dataplane.Counter, edit func(K, *dataplane.Counter)) {
	for key, c := range counters {
		edit(key, &c)
		counters[key] = c
	}
}

// keepCounters returns a function that goes on to report each frontend that it has seen. Address families have no frontend in common.
func keepCounters() func(*dataplane.Stats) {
	var mu sync.Mutex
	seen := map[model.FrontendKey]dataplane.Counter{}
	return func(s *dataplane.Stats) {
		mu.Lock()
		defer mu.Unlock()
		maps.Copy(seen, s.Frontends)
		for key, c := range seen {
			if _, held := s.Frontends[key]; !held && anyOfFamily(s.Frontends, key) {
				s.Frontends[key] = c
			}
		}
	}
}

func anyOfFamily(frontends map[model.FrontendKey]dataplane.Counter, like model.FrontendKey) bool {
	for key := range frontends {
		return key.VIP.Is4() == like.VIP.Is4()
	}
	return false
}

// resumeCounters returns a function that adds to the counter of a frontend what a deleted one with its key had.
func resumeCounters() func(*dataplane.Stats) {
	var mu sync.Mutex
	last, former := map[model.FrontendKey]uint64{}, map[model.FrontendKey]uint64{}
	return func(s *dataplane.Stats) {
		mu.Lock()
		defer mu.Unlock()
		for key, c := range s.Frontends {
			if c.Connections < last[key] {
				former[key] += last[key]
			}
			last[key] = c.Connections
			s.Frontends[key] = dataplane.Counter{Connections: c.Connections + former[key]}
		}
	}
}

// inReports returns faults of what a backend says apart from counters.
func inReports() []Mutation {
	operations := func(name string, edit func(*dataplane.Result)) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"operations"}, result: edit}
	}
	watches := func(name string, edit func(*dataplane.Fault) bool) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"watch"}, watched: edit}
	}
	renders := func(name string, edit func(string, model.Snapshot) string) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"render"}, render: edit}
	}
	mentions := func(words string) func(*dataplane.Fault) bool {
		return func(f *dataplane.Fault) bool { return !strings.Contains(f.Message, words) }
	}
	return []Mutation{
		operations("counts-no-operation", func(r *dataplane.Result) { r.Operations = 0 }),
		operations("counts-one-operation-for-each-change", func(r *dataplane.Result) { r.Operations = 1 }),
		operations("counts-refused-records", func(r *dataplane.Result) { r.Operations += uint64(len(r.Failed)) }),
		operations("counts-generations", func(r *dataplane.Result) { r.Operations = r.Generation.Number }),
		watches("reports-nothing", func(*dataplane.Fault) bool { return false }),
		watches("reports-without-a-word", func(f *dataplane.Fault) bool { f.Message = ""; return true }),
		watches("never-asks-for-a-resync", func(f *dataplane.Fault) bool { f.Resync = false; return true }),
		{Name: "believes-what-it-was-sent", CaughtBy: []string{"watch", "killed-during-apply"}, change: func(*memory, *dataplane.Change) {}},
		{Name: "overlooks-a-detached-program", Breaks: "ebpf", CaughtBy: []string{"watch"}, watched: mentions("detached")},
		{Name: "overlooks-removed-files", Breaks: "ebpf", CaughtBy: []string{"watch"}, watched: mentions("files in")},
		{Name: "overlooks-ended-processes", Breaks: "envoy", CaughtBy: []string{"watch"}, watched: mentions("kubelb-envoy")},
		renders("renders-nothing", func(string, model.Snapshot) string { return "" }),
		renders("renders-in-any-order", func(text string, _ model.Snapshot) string {
			lines := strings.Split(text, "\n")
			rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
			return strings.Join(lines, "\n")
		}),
		renders("renders-in-the-order-of-records", func(text string, s model.Snapshot) string { return fmt.Sprint(text, s.Frontends[0].FrontendKey) }),
		renders("renders-no-last-frontend", func(text string, s model.Snapshot) string {
			last := s.Canonical().Frontends[len(s.Frontends)-1]
			return strings.ReplaceAll(text, last.VIP.String(), "")
		}),
		renders("renders-no-endpoint", func(text string, s model.Snapshot) string {
			return strings.ReplaceAll(text, s.Canonical().Pools[1].Endpoints[0].Address.String(), "")
		}),
		renders("renders-no-options", func(text string, s model.Snapshot) string {
			var out strings.Builder
			for _, p := range s.Canonical().Pools {
				for _, e := range p.Endpoints {
					fmt.Fprintln(&out, e.Address, e.Weight, e.State)
				}
			}
			for _, f := range s.Canonical().Frontends {
				fmt.Fprintln(&out, f.FrontendKey, f.TargetPort, f.Pool)
			}
			return out.String()
		}),
		{Name: "renders-into-the-kernel", CaughtBy: []string{"render"}, rendered: func() error { return nft("add table ip rendered") }},
		{Name: "claims-refused-records", CaughtBy: []string{"applied", "bad-records"}, claimsRefused: true},
		{Name: "claims-half-of-what-it-serves", CaughtBy: []string{"applied"}, claimsHalf: true},
	}
}

// inTransit returns faults in the path of packets that are not for frontends.
func inTransit() []Mutation {
	with := func(name, hook, rules string) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"transit"}, host: func() error { return chain(hook, rules) }}
	}
	const forward, input, output, prerouting = "filter hook forward priority 10", "filter hook input priority 10", "filter hook output priority 10", "filter hook prerouting priority -450"
	return []Mutation{
		with("forwards-only-what-it-rewrites", forward, "ct status & dnat == 0 meta l4proto tcp tcp flags & syn != 0 drop"),
		with("forwards-no-other-datagrams", forward, "ct status & dnat == 0 meta l4proto udp drop"),
		with("forwards-no-echo-requests", forward, "icmp type echo-request drop; icmpv6 type echo-request drop"),
		with("forwards-nothing-from-nodes", forward, "iifname back ct direction original drop"),
		with("masquerades-all-forwarded-packets", "nat hook postrouting priority 110", "iifname front oifname back masquerade"),
		with("takes-node-ports", "nat hook prerouting priority -110", "iifname front tcp dport 30080 fib daddr type unicast redirect to :22"),
		with("takes-its-ports-at-all-addresses", "nat hook prerouting priority -110", "iifname front tcp dport 80 ip daddr 192.0.2.3 redirect to :7779; iifname front tcp dport 80 ip6 daddr 2001:db8:c::3 redirect to :7779"),
		with("takes-all-addresses-of-the-network", input, "ip daddr 203.0.113.200 drop; ip6 daddr 2001:db8:f::c8 drop"),
		with("drops-connections-to-the-gateway", input, "iifname front tcp dport 22 drop"),
		with("drops-connections-of-the-gateway", output, "oifname back tcp dport 30080 ct direction original drop"),
		with("drops-echo-requests-to-the-gateway", input, "icmp type echo-request ip daddr 192.0.2.3 drop; icmpv6 type echo-request ip6 daddr 2001:db8:c::3 drop"),
		with("drops-other-fragments", prerouting, "ip frag-off & 0x1fff != 0 drop; exthdr frag exists drop"),
		with("hides-expired-packets", output, "icmp type time-exceeded drop; icmpv6 type time-exceeded drop"),
		with("hides-closed-ports-of-nodes", forward, "icmp type destination-unreachable drop; icmpv6 type destination-unreachable drop"),
		{Name: "forgets-flows-of-others", CaughtBy: []string{"transit", "long-connections"}, applied: forgetFlows},
		{Name: "ends-other-connections-with-a-purge", CaughtBy: []string{"transit"}, purging: func() error { return forgetFlows(nil) }},
		{Name: "stops-forwarding-during-a-purge", CaughtBy: []string{"transit"}, purging: func() error {
			return chain(forward, "meta l4proto tcp drop")
		}},
		{Name: "stops-forwarding-after-a-purge", CaughtBy: []string{"transit"}, purged: func() error { return sysctl("net/ipv4/ip_forward", "0") }},
	}
}
