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

// Mutations returns all mutations.
func Mutations() []Mutation {
	return slices.Concat(inRecords(), inDeletes(), inFeatures(), inLife(), inPackets(), inPools(), inFamilies(), inSizesOfLimits(), inUpdates(), inBadRecords(), inFailedUpdates(), inRanges(), inHeaders(), inSizes(), inConfiguration(),
		inPurges(), inStats(), inReports(), inTransit())
}

// inRecords returns faults in the records that the backend gets.
func inRecords() []Mutation {
	return []Mutation{
		{Name: "loses-port-443", CaughtBy: []string{"many-ports"}, change: frontends(func(_ *memory, f *model.Frontend) bool { return f.Port != 443 })},
		{Name: "loses-high-ports", CaughtBy: []string{"many-ports"}, change: frontends(func(_ *memory, f *model.Frontend) bool { return f.Port < 32768 })},
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
		{Name: "loses-an-endpoint", CaughtBy: []string{"uniform", "local-set"}, change: pools(func(_ *memory, p *model.Pool) {
			if len(p.Endpoints) > 2 {
				p.Endpoints = p.Endpoints[1:]
			}
		})},
		{Name: "prefers-the-first-endpoint", CaughtBy: []string{"uniform"}, change: pools(func(_ *memory, p *model.Pool) {
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
		{Name: "hash-differs-by-gateway", CaughtBy: []string{"gateways-agree"}, change: endpoints(func(m *memory, e *model.Endpoint) { e.ID += m.node })},
		{Name: "hash-differs-by-change", CaughtBy: []string{"pool-change-moves-few", "unhealthy"}, change: endpoints(func(m *memory, e *model.Endpoint) { e.ID += m.generation.String() })},
	}
}

// inDeletes returns faults in changes and deletions of records.
func inDeletes() []Mutation {
	return []Mutation{
		{Name: "ignores-deletes", CaughtBy: []string{"frontend-deleted", "tcp-and-udp-on-one-port"}, change: func(_ *memory, c *dataplane.Change) { c.DeleteFrontends, c.DeletePools = nil, nil }},
		{Name: "endpoints-never-leave", CaughtBy: []string{"local-set", "pool-change-moves-few"}, change: neverShrink()},
		{Name: "empty-pool-keeps-last-endpoints", CaughtBy: []string{"empty-pool"}, change: keepLast()},
		{Name: "empty-pool-stays-empty", CaughtBy: []string{"empty-pool"}, change: stayEmpty()},
		{Name: "ignores-new-owner", CaughtBy: []string{"vip-reused", "oracle"}, change: ignoreNewOwner},
		{Name: "ignores-tenants", CaughtBy: []string{"vip-reused"}, change: ignoreTenants},
		{Name: "never-leaves-first-endpoint", CaughtBy: []string{"unanswered"}, change: onlyFirst()},
		{Name: "ignores-frontend-changes", CaughtBy: []string{"oracle"}, change: ignoreChanges},
		{Name: "rewrites-everything", CaughtBy: []string{"endpoints-change-under-load"}, rewrites: true},
		{Name: "ends-connections-of-left-endpoints", CaughtBy: []string{"own-pool-changes"}, change: noteLeft, applied: endFlows},
		{Name: "ends-all-flows-at-each-change", CaughtBy: []string{"long-connections", "own-pool-changes", "drain"}, applied: forgetFlows},
	}
}

// inFeatures returns faults in features that a backend declares.
func inFeatures() []Mutation {
	return []Mutation{
		{Name: "ignores-source-ranges", CaughtBy: []string{"source-ranges"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Restricted, f.SourceRanges = false, nil
			return true
		})},
		{Name: "empty-ranges-allow-all", CaughtBy: []string{"source-ranges"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Restricted = f.Restricted && len(f.SourceRanges) > 0
			return true
		})},
		{Name: "ignores-affinity", CaughtBy: []string{"affinity"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.AffinityTimeout = 0
			return true
		})},
		{Name: "affinity-never-expires", CaughtBy: []string{"affinity-timeout"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.AffinityTimeout *= 1000
			return true
		})},
		{Name: "loses-affinity-at-each-change", CaughtBy: []string{"affinity-pools", "affinity-timeout"}, applied: forgetClients},
		{Name: "direct-becomes-nat", CaughtBy: []string{"direct"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			if f.Forwarding == model.Direct {
				f.Forwarding = model.NAT
			}
			return true
		})},
		{Name: "direct-never-ends", CaughtBy: []string{"direct-changes"}, change: frontends(directNeverEnds)},
		{Name: "no-proxy-protocol-header", Breaks: "envoy", CaughtBy: []string{"proxy-protocol"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.ProxyProtocol = false
			return true
		})},
		{Name: "ignores-idle-timeout", Breaks: "envoy", CaughtBy: []string{"idle-timeout"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.IdleTimeout = 0
			return true
		})},
		{Name: "ignores-max-connections", CaughtBy: []string{"limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.MaxConnections = 0
			return true
		})},
		{Name: "max-connections-plus-one", CaughtBy: []string{"limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			if f.MaxConnections > 0 {
				f.MaxConnections++
			}
			return true
		})},
		{Name: "counts-ended-connections", CaughtBy: []string{"limits"}, stats: func(s *dataplane.Stats) {
			for key, c := range s.Frontends {
				c.Open = c.Connections
				s.Frontends[key] = c
			}
		}},
		{Name: "ignores-max-new-per-second", CaughtBy: []string{"rate-limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.MaxNewPerSecond = 0
			return true
		})},
		{Name: "one-new-flow-per-second", CaughtBy: []string{"rate-limits"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.MaxNewPerSecond = min(f.MaxNewPerSecond, 1)
			return true
		})},
		{Name: "transparent-becomes-nat", CaughtBy: []string{"transparent"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Forwarding = model.NAT
			return true
		})},
		{Name: "never-redirects", CaughtBy: []string{"handover"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Redirect = model.Redirect{}
			return true
		})},
		{Name: "redirects-to-one-gateway-only", CaughtBy: []string{"handover"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Redirect.Limit = min(f.Redirect.Limit, 1)
			return true
		})},
		{Name: "redirects-for-ever", CaughtBy: []string{"handover"}, change: frontends(redirectForEver)},
		{Name: "drops-undeclared-fields", CaughtBy: []string{"undeclared-features"}, change: frontends(func(_ *memory, f *model.Frontend) bool {
			f.Forwarding, f.ProxyProtocol, f.MaxConnections, f.MaxNewPerSecond, f.IdleTimeout = model.NAT, false, 0, 0, 0
			return true
		})},
	}
}

// inLife returns faults at start, end and change of a process.
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
		{Name: "reports-interrupted-changes-as-done", CaughtBy: []string{"stream-cut"}, believesCut: true},
		{Name: "reports-changes-before-they-are-done", CaughtBy: []string{"killed-during-apply"}, change: func(*memory, *dataplane.Change) {}},
		{Name: "begins-empty", CaughtBy: []string{"restart", "killed-during-apply"}, emptyAtStart: true},
		{Name: "no-lock-against-a-second-process", CaughtBy: []string{"second-backend"}, configure: ownState},
		{Name: "purges-nothing", CaughtBy: []string{"purge", "switching"}, noPurge: true},
		{Name: "purges-its-successor", CaughtBy: []string{"switching", "purge"}, purged: func() error { return nft("flush ruleset") }},
		{Name: "deletes-foreign-rules", CaughtBy: []string{"purge"}, applied: func(*memory) error { return nft("add table inet foreign; delete table inet foreign") }},
	}
}

// inPackets returns faults in the path of packets. They are made by rules in addition to those of the backend.
func inPackets() []Mutation {
	forward := func(name, rule string, caughtBy ...string) Mutation {
		return Mutation{Name: name, CaughtBy: caughtBy, host: func() error { return chain("filter hook forward priority 10", rule) }}
	}
	early := func(name, rule string, caughtBy ...string) Mutation {
		return Mutation{Name: name, CaughtBy: caughtBy, host: func() error { return chain("filter hook prerouting priority -450", rule) }}
	}
	return []Mutation{
		early("drops-fragments", "ip frag-off & 0x1fff != 0 drop; exthdr frag exists drop", "udp-fragments"),
		forward("drops-resets", "tcp flags & rst != 0 drop", "tcp-reset"),
		forward("drops-refusals", "iifname back tcp flags & rst != 0 drop; iifname back icmp type destination-unreachable drop; iifname back icmpv6 type destination-unreachable drop", "unreachable"),
		{Name: "no-icmp-errors-for-datagrams", CaughtBy: []string{"refusal"}, host: func() error {
			return chain("filter hook output priority 10", "icmp type destination-unreachable drop; icmpv6 type destination-unreachable drop")
		}},
		forward("forgets-half-closed-connections", "", "tcp-half-close"),
		forward("drops-after-300-megabytes", "ct bytes > 300000000 drop", "tcp-transfer"),
		// The backend does not mark the end of a connection that has a mark of another program.
		forward("keeps-ended-connections", "ct status snat ct mark 0 ct mark set 1", "ports-again"),
		forward("keeps-ended-connections-transparent", "ct direction reply ct status & (snat | dnat) == dnat ct mark 0 ct mark set 1", "ports-again-transparent"),
		{Name: "keeps-ended-connections-direct", CaughtBy: []string{"ports-again-direct"}, host: func() error {
			return chain("filter hook postrouting priority 115", "ct mark 0x6c000000/8 ct mark set ct mark & 0xff7fffff")
		}},
		forward("limits-udp-flows", "meta l4proto udp ct state new ct count over 300 drop", "udp-many-clients"),
		forward("drops-large-datagrams", "udp length > 8000 drop", "direct-path", "udp-fragments"),
		early("drops-hairpin", "iifname front ip saddr 198.51.100.0/24 drop; iifname front ip6 saddr 2001:db8:1::/64 drop", "hairpin"),
		early("drops-packet-too-big", "icmp code frag-needed drop; icmpv6 type packet-too-big drop", "path-mtu"),
		early("drops-echo-requests", "icmp type echo-request drop; icmpv6 type echo-request drop", "icmp-echo"),
		{Name: "exposes-the-host", CaughtBy: []string{"other-ports-reach-nothing"}, host: openHost},
	}
}

// noteLeft stores the endpoints that leave a pool.
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

// forgetFlows flushes connection tracking. It also stops connection tracking from picking up established connections, which
// could get their old source port again and continue.
func forgetFlows(*memory) error {
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("0"), 0o644); err != nil {
		return err
	}
	return netlink.ConntrackTableFlush(netlink.ConntrackTable)
}

// forgetClients deletes the endpoints of clients with affinity from the maps of the nftables backend.
func forgetClients(*memory) error {
	return nft("flush map ip kubelb clients; flush map ip6 kubelb clients")
}

// endFlows deletes connection tracking entries to endpoints that left.
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

// openHost translates, without connection tracking, packets for port 22 of the first VIP to the gateway's own address.
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

// neverShrink adds to each pool all endpoints that it ever had.
func neverShrink() func(*memory, *dataplane.Change) {
	return remember(func(before, now model.Pool) model.Pool {
		for _, e := range before.Endpoints {
			if !slices.ContainsFunc(now.Endpoints, func(o model.Endpoint) bool { return o.ID == e.ID }) {
				now.Endpoints = append(now.Endpoints, e)
			}
		}
		return now
	})
}

// onlyFirst reduces each pool to the first endpoint that it had.
func onlyFirst() func(*memory, *dataplane.Change) {
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

// remember makes each pool depend on its former state on the same gateway.
func remember(edit func(before, now model.Pool) model.Pool) func(*memory, *dataplane.Change) {
	return func(m *memory, c *dataplane.Change) {
		for i, p := range c.UpsertPools {
			c.UpsertPools[i] = model.Snapshot{Pools: []model.Pool{edit(m.held[p.ID], p)}}.Canonical().Pools[0]
			m.held[p.ID] = c.UpsertPools[i]
		}
	}
}

// ignoreChanges ignores changes of frontends that it has.
func ignoreChanges(m *memory, c *dataplane.Change) {
	for _, key := range c.DeleteFrontends {
		delete(m.served, key)
	}
	c.UpsertFrontends = slices.DeleteFunc(c.UpsertFrontends, func(f model.Frontend) bool {
		_, had := m.served[f.FrontendKey]
		m.served[f.FrontendKey] = f
		return had
	})
}

// directNeverEnds keeps a frontend direct once it was direct.
func directNeverEnds(m *memory, f *model.Frontend) bool {
	if m.served[f.FrontendKey].Forwarding == model.Direct {
		f.Forwarding = model.Direct
	}
	m.served[f.FrontendKey] = *f
	return true
}

func redirectForEver(m *memory, f *model.Frontend) bool {
	if before := m.served[f.FrontendKey].Redirect; !before.IsZero() {
		f.Redirect = before
	}
	m.served[f.FrontendKey] = *f
	return true
}

// ignoreNewOwner ignores changes of the owner of a frontend.
func ignoreNewOwner(m *memory, c *dataplane.Change) {
	c.UpsertFrontends = slices.DeleteFunc(c.UpsertFrontends, func(f model.Frontend) bool {
		first, known := m.served[f.FrontendKey]
		if !known {
			m.served[f.FrontendKey] = f
		}
		return known && first.Owner != f.Owner
	})
	c.DeleteFrontends, c.DeletePools = nil, nil
}

// ignoreTenants makes all records belong to one tenant.
func ignoreTenants(_ *memory, c *dataplane.Change) {
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

// chain adds a chain with rules, which are separated by semicolons. Without a rule it shortens the timeouts of connection
// tracking for half-closed connections.
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
