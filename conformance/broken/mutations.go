package broken

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// Mutations returns every way to be broken.
func Mutations() []Mutation {
	return slices.Concat(inRecords(), inDeletes(), inFeatures(), inLife(), inPackets())
}

// inRecords are faults in what a record becomes.
func inRecords() []Mutation {
	return []Mutation{
		{Name: "forgets-a-port", CaughtBy: []string{"many-ports"}, change: frontends(func(_ *memory, f *model.Frontend) bool { return f.Port != 443 })},
		{Name: "cannot-count-to-65535", CaughtBy: []string{"many-ports"}, change: frontends(func(_ *memory, f *model.Frontend) bool { return f.Port < 32768 })},
		{Name: "no-tcp", CaughtBy: []string{"tcp-echo"}, change: frontends(func(_ *memory, f *model.Frontend) bool { return f.Protocol != model.TCP })},
		{Name: "no-udp", CaughtBy: []string{"udp-reply"}, change: frontends(func(_ *memory, f *model.Frontend) bool { return f.Protocol != model.UDP })},
		{Name: "one-pool-for-both-protocols", CaughtBy: []string{"tcp-and-udp-on-one-port"}, change: frontends(func(m *memory, f *model.Frontend) bool {
			twin := f.FrontendKey
			twin.Protocol = model.TCP
			if other, ok := m.frontends[twin]; ok {
				f.Pool, f.TargetPort = other.Pool, other.TargetPort
			}
			return true
		})},
		{Name: "one-pool-for-a-port", CaughtBy: []string{"same-port-on-two-vips"}, change: frontends(func(m *memory, f *model.Frontend) bool {
			for key, other := range m.frontends {
				if key.Port == f.Port && key.Protocol == f.Protocol && key.VIP.Less(f.VIP) {
					f.Pool, f.TargetPort = other.Pool, other.TargetPort
				}
			}
			return true
		})},
		{Name: "forgets-an-endpoint", CaughtBy: []string{"uniform", "local-set"}, change: pools(func(_ *memory, p *model.Pool) {
			if len(p.Endpoints) > 2 {
				p.Endpoints = p.Endpoints[1:]
			}
		})},
		{Name: "favours-the-first", CaughtBy: []string{"uniform"}, change: pools(func(_ *memory, p *model.Pool) {
			if len(p.Endpoints) > 1 {
				p.Endpoints[0].Weight *= 3
			}
		})},
		{Name: "ignores-weights", CaughtBy: []string{"weights"}, change: endpoints(func(_ *memory, e *model.Endpoint) { e.Weight = 1 })},
		{Name: "ignores-health", CaughtBy: []string{"unhealthy"}, change: endpoints(func(_ *memory, e *model.Endpoint) {
			if e.State == model.Unhealthy {
				e.State = model.Active
			}
		})},
		{Name: "drains-at-once", CaughtBy: []string{"drain"}, change: endpoints(func(_ *memory, e *model.Endpoint) {
			if e.State == model.Draining {
				e.State = model.Unhealthy
			}
		})},
		{Name: "never-drains", CaughtBy: []string{"drain"}, change: endpoints(func(_ *memory, e *model.Endpoint) {
			if e.State == model.Draining {
				e.State = model.Active
			}
		})},
		{Name: "a-seed-for-each-gateway", CaughtBy: []string{"gateways-agree"}, change: endpoints(func(m *memory, e *model.Endpoint) { e.ID += m.node })},
		{Name: "a-seed-for-each-change", CaughtBy: []string{"pool-change-moves-few", "unhealthy"}, change: endpoints(func(m *memory, e *model.Endpoint) { e.ID += m.generation.String() })},
	}
}

// inDeletes are faults in what goes, and in what comes back.
func inDeletes() []Mutation {
	return []Mutation{
		{Name: "ignores-deletes", CaughtBy: []string{"frontend-deleted", "tcp-and-udp-on-one-port"}, change: func(_ *memory, c *dataplane.Change) { c.DeleteFrontends, c.DeletePools = nil, nil }},
		{Name: "endpoints-never-leave", CaughtBy: []string{"local-set", "pool-change-moves-few"}, change: everGrowing()},
		{Name: "an-empty-pool-keeps-its-last", CaughtBy: []string{"empty-pool"}, change: keepLast()},
		{Name: "an-empty-pool-stays-empty", CaughtBy: []string{"empty-pool"}, change: stayEmpty()},
		{Name: "the-first-owner-stays", CaughtBy: []string{"vip-reused", "oracle"}, change: firstOwner},
		{Name: "takes-all-tenants-for-one", CaughtBy: []string{"vip-reused"}, change: oneTenant},
		{Name: "sticks-to-the-dead", CaughtBy: []string{"unanswered"}, change: stickToFirst()},
		{Name: "a-frontend-stays-as-it-began", CaughtBy: []string{"oracle"}, change: asItBegan},
		{Name: "rewrites-everything", CaughtBy: []string{"endpoints-change-under-load"}, rewrites: true},
		{Name: "ends-flows-of-what-leaves", CaughtBy: []string{"own-pool-changes"}, change: noteLeft, applied: endFlows},
		{Name: "ends-all-flows-at-each-change", CaughtBy: []string{"long-connections", "own-pool-changes", "drain"}, applied: forgetFlows},
	}
}

// inFeatures are faults in what a backend declares.
func inFeatures() []Mutation {
	return []Mutation{
		{Name: "open-to-all", CaughtBy: []string{"source-ranges"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Restricted, f.SourceRanges = false, nil
			return true
		})},
		{Name: "no-range-means-all", CaughtBy: []string{"source-ranges"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Restricted = f.Restricted && len(f.SourceRanges) > 0
			return true
		})},
		{Name: "no-affinity", CaughtBy: []string{"affinity"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.AffinityTimeout = 0
			return true
		})},
		{Name: "affinity-for-ever", CaughtBy: []string{"affinity-timeout"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.AffinityTimeout *= 1000
			return true
		})},
		{Name: "forgets-its-clients", CaughtBy: []string{"affinity-pools", "affinity-timeout"}, applied: forgetClients},
		{Name: "knows-no-direct", CaughtBy: []string{"direct"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			if f.Forwarding == model.Direct {
				f.Forwarding = model.NAT
			}
			return true
		})},
		{Name: "direct-for-ever", CaughtBy: []string{"direct-changes"}, change: frontends(directForEver)},
		{Name: "keeps-the-client-to-itself", Breaks: "envoy", CaughtBy: []string{"proxy-protocol"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.ProxyProtocol = false
			return true
		})},
		{Name: "never-tires", Breaks: "envoy", CaughtBy: []string{"idle-timeout"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.IdleTimeout = 0
			return true
		})},
		{Name: "has-room-for-all", CaughtBy: []string{"limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.MaxConnections = 0
			return true
		})},
		{Name: "has-room-for-one-more", CaughtBy: []string{"limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			if f.MaxConnections > 0 {
				f.MaxConnections++
			}
			return true
		})},
		{Name: "counts-what-has-ended", CaughtBy: []string{"limits"}, stats: func(s *dataplane.Stats) {
			for key, c := range s.Frontends {
				c.Open = c.Connections
				s.Frontends[key] = c
			}
		}},
		{Name: "takes-all-at-once", CaughtBy: []string{"rate-limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.MaxNewPerSecond = 0
			return true
		})},
		{Name: "takes-one-a-second", CaughtBy: []string{"rate-limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.MaxNewPerSecond = min(f.MaxNewPerSecond, 1)
			return true
		})},
		{Name: "hides-the-client", CaughtBy: []string{"transparent"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Forwarding = model.NAT
			return true
		})},
		{Name: "forgets-who-served-before", CaughtBy: []string{"handover"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Handover = model.Handover{}
			return true
		})},
		{Name: "asks-one-only", CaughtBy: []string{"handover"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Handover.Asks = min(f.Handover.Asks, 1)
			return true
		})},
		{Name: "hands-over-for-ever", CaughtBy: []string{"handover"}, change: frontends(handsOverForEver)},
		{Name: "serves-by-halves", CaughtBy: []string{"undeclared-features"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Forwarding, f.ProxyProtocol, f.MaxConnections, f.MaxNewPerSecond, f.IdleTimeout = model.NAT, false, 0, 0, 0
			return true
		})},
	}
}

// inLife are faults in what a process does with what it finds and leaves.
func inLife() []Mutation {
	return []Mutation{
		{Name: "takes-any-base", CaughtBy: []string{"generations"}, anyBase: true},
		{Name: "hides-failures", CaughtBy: []string{"bad-records"}, result: func(r *dataplane.Result) { r.Failed = nil }},
		{Name: "one-bad-record-fails-all", CaughtBy: []string{"bad-records"}, change: func(m *memory, c *dataplane.Change) {
			known := func(f model.Frontend) bool { _, ok := m.pools[f.Pool]; return ok }
			if slices.ContainsFunc(c.UpsertFrontends, func(f model.Frontend) bool { return !known(f) }) {
				c.UpsertFrontends = slices.DeleteFunc(c.UpsertFrontends, known)
			}
		}},
		{Name: "believes-what-was-cut-off", CaughtBy: []string{"stream-cut"}, believesCut: true},
		{Name: "remembers-what-it-never-did", CaughtBy: []string{"killed-during-apply"}, change: func(*memory, *dataplane.Change) {}},
		{Name: "begins-empty", CaughtBy: []string{"restart", "killed-during-apply"}, emptyAtStart: true},
		{Name: "works-beside-another", CaughtBy: []string{"second-backend"}, configure: ownState},
		{Name: "leaves-everything", CaughtBy: []string{"purge", "switching"}, noPurge: true},
		{Name: "takes-its-successor-along", CaughtBy: []string{"switching", "purge"}, purged: func() error { return nft("flush ruleset") }},
		{Name: "flushes-the-rules-of-others", CaughtBy: []string{"purge"}, applied: func(*memory) error { return nft("add table inet foreign; delete table inet foreign") }},
	}
}

// inPackets are faults in the path of packets, made by rules beside the backend's.
func inPackets() []Mutation {
	forward := func(name, rule string, caughtBy ...string) Mutation {
		return Mutation{Name: name, CaughtBy: caughtBy, host: func() error { return chain("filter hook forward priority 10", rule) }}
	}
	early := func(name, rule string, caughtBy ...string) Mutation {
		return Mutation{Name: name, CaughtBy: caughtBy, host: func() error { return chain("filter hook prerouting priority -450", rule) }}
	}
	return []Mutation{
		early("drops-fragments", "ip frag-off & 0x1fff != 0 drop; exthdr frag exists drop", "udp-fragments"),
		forward("eats-resets", "tcp flags & rst != 0 drop", "tcp-reset"),
		forward("hides-refusals", "iifname back tcp flags & rst != 0 drop; iifname back icmp type destination-unreachable drop; iifname back icmpv6 type destination-unreachable drop", "unreachable"),
		{Name: "silent-to-datagrams", CaughtBy: []string{"refusal"}, host: func() error {
			return chain("filter hook output priority 10", "icmp type destination-unreachable drop; icmpv6 type destination-unreachable drop")
		}},
		forward("forgets-what-is-half-closed", "", "tcp-half-close"),
		forward("tires-of-long-connections", "ct bytes > 300000000 drop", "tcp-transfer"),
		// A connection that another program has marked gets no note of its end.
		forward("keeps-what-has-ended", "ct status snat ct mark 0 ct mark set 1", "ports-again"),
		forward("keeps-what-has-ended-of-clients-that-endpoints-see", "ct direction reply ct status & (snat | dnat) == dnat ct mark 0 ct mark set 1", "ports-again-transparent"),
		{Name: "keeps-what-it-sees-half-of", CaughtBy: []string{"ports-again-direct"}, host: func() error {
			return chain("filter hook postrouting priority 115", "ct mark 0x6c000000/8 ct mark set ct mark & 0xff7fffff")
		}},
		forward("has-room-for-few", "meta l4proto udp ct state new ct count over 300 drop", "udp-many-clients"),
		forward("no-room-for-large-datagrams", "udp length > 8000 drop", "direct-path", "udp-fragments"),
		early("no-hairpin", "iifname front ip saddr 198.51.100.0/24 drop; iifname front ip6 saddr 2001:db8:1::/64 drop", "hairpin"),
		early("keeps-errors-to-itself", "icmp code frag-needed drop; icmpv6 type packet-too-big drop", "path-mtu"),
		early("no-echo", "icmp type echo-request drop; icmpv6 type echo-request drop", "icmp-echo"),
		{Name: "opens-the-host", CaughtBy: []string{"other-ports-reach-nothing"}, host: openHost},
	}
}

// noteLeft notes endpoints that leave a pool.
func noteLeft(m *memory, c *dataplane.Change) {
	m.left = nil
	for _, p := range c.UpsertPools {
		for _, e := range m.held[p.ID].Endpoints {
			if !slices.ContainsFunc(p.Endpoints, func(o model.Endpoint) bool { return o.ID == e.ID }) {
				m.left = append(m.left, e.Address)
			}
		}
		m.held[p.ID] = p
	}
}

// forgetFlows makes connection tracking forget everything, and take up no connection that it does not know from its start: one that
// gets its old source port again would not notice.
func forgetFlows(*memory) error {
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("0"), 0o644); err != nil {
		return err
	}
	return netlink.ConntrackTableFlush(netlink.ConntrackTable)
}

// forgetClients makes the nftables backend forget which endpoints clients with affinity have had.
func forgetClients(*memory) error {
	return nft("flush map ip kubelb clients; flush map ip6 kubelb clients")
}

// endFlows makes connection tracking forget what goes to endpoints that left.
func endFlows(m *memory) error {
	for _, address := range m.left {
		family := netlink.InetFamily(netlink.FAMILY_V6)
		if address.Is4() {
			family = netlink.FAMILY_V4
		}
		var filter netlink.ConntrackFilter
		if err := filter.AddIP(netlink.ConntrackReplySrcIP, address.AsSlice()); err != nil {
			return err
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, &filter); err != nil {
			return err
		}
	}
	return nil
}

// openHost rewrites, without any state, what comes for a port of the first VIP that the gateway itself listens on.
func openHost() error {
	return nft(`add table inet fault
		add chain inet fault in { type filter hook prerouting priority -300; }
		add chain inet fault out { type filter hook output priority -300; }
		add rule inet fault in ip daddr 203.0.113.1 tcp dport 22 ip daddr set 192.0.2.1
		add rule inet fault out ip saddr 192.0.2.1 tcp sport 22 ip saddr set 203.0.113.1
		add rule inet fault in ip6 daddr 2001:db8:f::1 tcp dport 22 ip6 daddr set 2001:db8:c::1
		add rule inet fault out ip6 saddr 2001:db8:c::1 tcp sport 22 ip6 saddr set 2001:db8:f::1`)
}

func frontends(edit func(*memory, *model.Frontend) bool) func(*memory, *dataplane.Change) {
	return func(m *memory, c *dataplane.Change) {
		var kept []model.Frontend
		for _, f := range c.UpsertFrontends {
			if edit(m, &f) {
				kept = append(kept, f)
			}
		}
		c.UpsertFrontends = kept
	}
}

func pools(edit func(*memory, *model.Pool)) func(*memory, *dataplane.Change) {
	return func(m *memory, c *dataplane.Change) {
		for i := range c.UpsertPools {
			edit(m, &c.UpsertPools[i])
		}
	}
}

func endpoints(edit func(*memory, *model.Endpoint)) func(*memory, *dataplane.Change) {
	return pools(func(m *memory, p *model.Pool) {
		for i := range p.Endpoints {
			edit(m, &p.Endpoints[i])
		}
	})
}

// everGrowing adds to each pool what it has ever held.
func everGrowing() func(*memory, *dataplane.Change) {
	return remember(func(before, now model.Pool) model.Pool {
		for _, e := range before.Endpoints {
			if !slices.ContainsFunc(now.Endpoints, func(o model.Endpoint) bool { return o.ID == e.ID }) {
				now.Endpoints = append(now.Endpoints, e)
			}
		}
		return now
	})
}

// stickToFirst keeps the first endpoint that a pool had, and nothing else.
func stickToFirst() func(*memory, *dataplane.Change) {
	return remember(func(before, now model.Pool) model.Pool {
		if len(before.Endpoints) > 0 {
			now.Endpoints = before.Endpoints[:1]
		}
		return now
	})
}

func keepLast() func(*memory, *dataplane.Change) {
	return remember(func(before, now model.Pool) model.Pool {
		if len(now.Endpoints) == 0 {
			now.Endpoints = before.Endpoints
		}
		return now
	})
}

func stayEmpty() func(*memory, *dataplane.Change) {
	return remember(func(before, now model.Pool) model.Pool {
		if before.ID != "" && len(before.Endpoints) == 0 {
			now.Endpoints = nil
		}
		return now
	})
}

// remember lets a pool depend on what it was before, in the same gateway.
func remember(edit func(before, now model.Pool) model.Pool) func(*memory, *dataplane.Change) {
	return func(m *memory, c *dataplane.Change) {
		for i, p := range c.UpsertPools {
			c.UpsertPools[i] = model.Snapshot{Pools: []model.Pool{edit(m.held[p.ID], p)}}.Canonical().Pools[0]
			m.held[p.ID] = c.UpsertPools[i]
		}
	}
}

// asItBegan takes no change of a frontend that it has.
func asItBegan(m *memory, c *dataplane.Change) {
	for _, key := range c.DeleteFrontends {
		delete(m.served, key)
	}
	c.UpsertFrontends = slices.DeleteFunc(c.UpsertFrontends, func(f model.Frontend) bool {
		_, had := m.served[f.FrontendKey]
		m.served[f.FrontendKey] = f
		return had
	})
}

// directForEver leaves a frontend direct that once was.
func directForEver(m *memory, f *model.Frontend) bool {
	if m.served[f.FrontendKey].Forwarding == model.Direct {
		f.Forwarding = model.Direct
	}
	m.served[f.FrontendKey] = *f
	return true
}

func handsOverForEver(m *memory, f *model.Frontend) bool {
	if before := m.served[f.FrontendKey].Handover; !before.IsZero() {
		f.Handover = before
	}
	m.served[f.FrontendKey] = *f
	return true
}

// firstOwner leaves a frontend with whom it had first.
func firstOwner(m *memory, c *dataplane.Change) {
	c.UpsertFrontends = slices.DeleteFunc(c.UpsertFrontends, func(f model.Frontend) bool {
		first, known := m.served[f.FrontendKey]
		if !known {
			m.served[f.FrontendKey] = f
		}
		return known && first.Owner != f.Owner
	})
	c.DeleteFrontends, c.DeletePools = nil, nil
}

// oneTenant has all records belong to one tenant.
func oneTenant(_ *memory, c *dataplane.Change) {
	rename := func(id model.PoolID) model.PoolID { return "all/" + id }
	for i := range c.UpsertPools {
		p := &c.UpsertPools[i]
		p.ID, p.Tenant = rename(p.ID), "all"
	}
	for i := range c.UpsertFrontends {
		f := &c.UpsertFrontends[i]
		f.Pool, f.Tenant = rename(f.Pool), "all"
	}
	for i, id := range c.DeletePools {
		c.DeletePools[i] = rename(id)
	}
}

// chain makes a chain beside the backend's, with rules separated by semicolons. Without a rule it shortens the time for
// which connection tracking remembers what is half-closed.
func chain(hook, rules string) error {
	if rules == "" {
		for _, state := range []string{"close_wait", "fin_wait", "last_ack"} {
			if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_"+state, []byte("1"), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	text := "add table inet fault; add chain inet fault " + strings.Fields(hook)[2] + " { type " + hook + "; };"
	for rule := range strings.SplitSeq(rules, "; ") {
		text += "add rule inet fault " + strings.Fields(hook)[2] + " " + rule + ";"
	}
	return nft(text)
}

func nft(text string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	output, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, output)
	}
	return nil
}
