package envoy

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	nft "github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// ruleset has the nftables tables and routes that deliver packets for VIPs to Envoy's sockets. A VIP is on no interface: an
// nftables table marks packets for frontends, and a routing rule delivers marked packets to this host. All other packets for a
// VIP are refused, so that no other socket of the host is reachable by a VIP. Packets outside the source ranges are dropped, for
// TCP and UDP. Envoy could do that for TCP only, and only after it has accepted the connection.
type ruleset struct {
	name       string
	tables     [2]*familyTable
	echo       *echo
	redirector *redirector
	layout     layout
}

// envoyMark is the mark of packets to Envoy, envoyRoutingTable the routing table for them, envoyRulePriority the priority of its rule.
const (
	envoyMark         = 0x6b756576
	envoyRoutingTable = 27509
	envoyRulePriority = 27509
)

// familyTable is the table of a family.
type familyTable struct {
	familyConfig
	table *nft.Table
	vips  *nft.Set
	// lists maps a restricted frontend to the chain of its source ranges.
	lists *nft.Set
	// decided are the frontends of each of the decidingChains.
	decided [len(decidingChains)]*nft.Set
	// endpoints are the endpoints of UDP frontends, with protocol and port. sessions counts the flows to them, which Envoy does not count.
	endpoints, sessions *nft.Set
	// next maps a frontend to the gateway to which packets of unknown connections are redirected.
	next          *nft.Set
	vipUsers      map[netip.Addr]int
	listUsers     map[string]int
	endpointUsers map[netip.AddrPort]int
	known         map[model.FrontendKey]frontendRules
	// answers is set if answers to clients of transparent frontends are delivered to Envoy.
	answers bool
	// counts is set if flows to the endpoints of UDP frontends are counted.
	counts bool
	// unusable is why this family cannot be used, for example because IPv6 is turned off.
	unusable error
}

type familyConfig struct {
	family              nft.TableFamily
	v4                  bool
	address             nft.SetDatatype
	source, destination uint32
	size                uint32
	icmp                byte
	echo, echoReply     byte
	errors              []byte
	unreachable         uint8
	netlink             int
}

var familyConfigs = [2]familyConfig{
	{nft.TableFamilyIPv4, true, nft.TypeIPAddr, 12, 16, 4, unix.IPPROTO_ICMP, 8, 0, []byte{3, 11, 12}, 3, netlink.FAMILY_V4},
	{nft.TableFamilyIPv6, false, nft.TypeIP6Addr, 8, 24, 16, unix.IPPROTO_ICMPV6, 128, 129, []byte{1, 2, 3, 4}, 4, netlink.FAMILY_V6},
}

func newRuleset(name string) *ruleset {
	g := &ruleset{name: name, echo: newEcho(name), redirector: newRedirector()}
	for i, f := range familyConfigs {
		t := &familyTable{familyConfig: f, table: &nft.Table{Name: name, Family: f.family}, vipUsers: map[netip.Addr]int{}, listUsers: map[string]int{}, endpointUsers: map[netip.AddrPort]int{}, known: map[model.FrontendKey]frontendRules{}}
		key := nft.MustConcatSetType(f.address, nft.TypeInetProto, nft.TypeInetService)
		t.vips = &nft.Set{Table: t.table, Name: "vips", KeyType: f.address}
		for i, chain := range decidingChains {
			t.decided[i] = &nft.Set{Table: t.table, Name: "to_" + chain, KeyType: key, Concatenation: true}
		}
		t.lists = &nft.Set{Table: t.table, Name: "ranges", KeyType: key, DataType: nft.TypeVerdict, IsMap: true, Concatenation: true}
		t.endpoints = &nft.Set{Table: t.table, Name: "endpoints", KeyType: key, Concatenation: true}
		t.sessions = &nft.Set{Table: t.table, Name: "sessions", KeyType: key, Concatenation: true, Counter: true}
		t.next = &nft.Set{Table: t.table, Name: "next", KeyType: key, DataType: f.address, IsMap: true, Concatenation: true}
		g.tables[i] = t
	}
	return g
}

// frontendRules is a frontend for the nftables rules.
type frontendRules struct {
	model.Frontend
	// served is set if Envoy listens for it. Otherwise flows from allowed sources are refused.
	served bool
	// endpoints are the endpoints of a UDP frontend.
	endpoints []netip.AddrPort
}

// redirect returns the redirect of packets of unknown connections, which a frontend has only while it is served.
func (f frontendRules) redirect() model.Redirect {
	if !f.served {
		return model.Redirect{}
	}
	return f.Redirect
}

// chain returns the chain for packets to the frontend. It is empty if they are refused like packets to a port that is not served.
func (f frontendRules) chain() string {
	switch {
	case f.served && f.Restricted:
		return chainServeSome
	case f.served:
		return chainServe
	case f.Restricted:
		return chainRefuseSome
	}
	return ""
}

// install replaces tables, rules and routes by those for these frontends.
func (g *ruleset) install(all []frontendRules) error {
	rewritten, err := flowsAreRewritten()
	if err != nil {
		return err
	}
	g.layout = untracked
	if rewritten {
		g.layout = tracked
	}
	if err := g.write(all); err != nil {
		return err
	}
	return g.redirector.detachEarlier()
}

// write replaces everything, in the current layout.
func (g *ruleset) write(all []frontendRules) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	c.AddTable(g.echo.table)
	c.DelTable(g.echo.table)
	if err := g.echo.create(c); err != nil {
		return err
	}
	for _, t := range g.tables {
		t.answers, t.counts = false, false
		c.AddTable(t.table)
		c.DelTable(t.table)
		if err := t.create(c, g.layout); err != nil {
			return err
		}
		t.vipUsers, t.listUsers, t.endpointUsers, t.known = map[netip.Addr]int{}, map[string]int{}, map[netip.AddrPort]int{}, map[model.FrontendKey]frontendRules{}
	}
	if err := g.edit(c, all, nil); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("create nftables table %s (needs CAP_NET_ADMIN and a kernel with nf_tables and conntrack): %w", g.name, err)
	}
	if err := g.echo.ensureChains(); err != nil {
		return err
	}
	g.updateRedirects(all, nil)
	return g.route()
}

// change sets some frontends and deletes others, in one transaction.
func (g *ruleset) change(set []frontendRules, gone []model.FrontendKey) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	if err := g.edit(c, set, gone); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		// The state of the kernel is unknown now, so everything is written again.
		return errors.Join(fmt.Errorf("change nftables table %s: %w", g.name, err), g.write(g.all()))
	}
	g.updateRedirects(set, gone)
	return nil
}

// updateRedirects updates the redirects of frontends. After an error Watch tries again and reports it (faults).
func (g *ruleset) updateRedirects(set []frontendRules, gone []model.FrontendKey) {
	if g.redirector.update(set, gone) {
		_ = g.redirector.sync()
	}
}

func (g *ruleset) all() []frontendRules {
	var out []frontendRules
	for _, t := range g.tables {
		out = slices.AppendSeq(out, maps.Values(t.known))
	}
	return out
}

func (g *ruleset) tableOf(vip netip.Addr) *familyTable {
	for _, t := range g.tables {
		if t.v4 == vip.Is4() {
			return t
		}
	}
	return nil
}

// setChanges collects elements to add to sets and to remove from them.
type setChanges struct{ add, remove map[*nft.Set][]nft.SetElement }

func (e setChanges) send(c *nft.Conn) error {
	var errs []error
	for set, removed := range e.remove {
		for chunk := range slices.Chunk(removed, elements.PerMessage) {
			errs = append(errs, c.SetDeleteElements(set, chunk))
		}
	}
	for set, added := range e.add {
		for chunk := range slices.Chunk(added, elements.PerMessage) {
			errs = append(errs, c.SetAddElements(set, chunk))
		}
	}
	return errors.Join(errs...)
}

// setMember adds the element to a set or removes it.
func (e setChanges) setMember(set *nft.Set, element nft.SetElement, before, after bool) {
	switch {
	case before && !after:
		e.remove[set] = append(e.remove[set], element)
	case after && !before:
		e.add[set] = append(e.add[set], element)
	}
}

func (g *ruleset) edit(c *nft.Conn, set []frontendRules, gone []model.FrontendKey) error {
	e := setChanges{map[*nft.Set][]nft.SetElement{}, map[*nft.Set][]nft.SetElement{}}
	vips, endpoints := map[netip.Addr]int{}, map[netip.AddrPort]int{}
	lists := newListChanges()
	replace := func(t *familyTable, key model.FrontendKey, before, after frontendRules) {
		t.collectChanges(e, key, before, after)
		lists.replace(t, e, key, before, after)
		for _, at := range before.endpoints {
			endpoints[at]--
		}
		for _, at := range after.endpoints {
			endpoints[at]++
		}
	}
	for _, key := range gone {
		t := g.tableOf(key.VIP)
		if before, known := t.known[key]; known {
			delete(t.known, key)
			vips[key.VIP]--
			replace(t, key, before, frontendRules{})
		}
	}
	for _, f := range set {
		t := g.tableOf(f.VIP)
		before, known := t.known[f.FrontendKey]
		if !known {
			vips[f.VIP]++
		}
		t.known[f.FrontendKey] = f
		if f.Forwarding == model.Transparent {
			t.deliverAnswers(c)
		}
		if len(f.endpoints) > 0 {
			g.tableOf(f.endpoints[0].Addr()).countSessions(c)
		}
		replace(t, f.FrontendKey, before, f)
	}
	for vip, change := range vips {
		t := g.tableOf(vip)
		before, after := count(t.vipUsers, vip, change)
		for _, set := range []*nft.Set{t.vips, g.echo.set(vip)} {
			e.setMember(set, nft.SetElement{Key: vip.AsSlice()}, before, after)
		}
	}
	for at, change := range endpoints {
		t := g.tableOf(at.Addr())
		before, after := count(t.endpointUsers, at, change)
		for _, set := range []*nft.Set{t.endpoints, t.sessions} {
			e.setMember(set, nft.SetElement{Key: endpointKey(at)}, before, after)
		}
	}
	if err := lists.addNew(c); err != nil {
		return err
	}
	if err := e.send(c); err != nil {
		return err
	}
	lists.deleteUnused(c)
	return nil
}

// count changes the number of users of a key, and reports whether it had users before and has some after.
func count[K comparable](users map[K]int, key K, change int) (before, after bool) {
	n := users[key]
	if users[key] += change; users[key] == 0 {
		delete(users, key)
	}
	return n > 0, n+change > 0
}

// collectChanges collects the changes of sets from one state of a frontend to another.
func (t *familyTable) collectChanges(e setChanges, k model.FrontendKey, before, after frontendRules) {
	key := nft.SetElement{Key: elements.Frontend(k)}
	for i, chain := range decidingChains {
		e.setMember(t.decided[i], key, before.chain() == chain, after.chain() == chain)
	}
	if former, next := before.redirect().Next, after.redirect().Next; former != next {
		if former.IsValid() {
			e.remove[t.next] = append(e.remove[t.next], key)
		}
		if next.IsValid() {
			e.add[t.next] = append(e.add[t.next], nft.SetElement{Key: key.Key, Val: next.AsSlice()})
		}
	}
}

// endpointKey returns the key of an endpoint of a UDP frontend in the sets.
func endpointKey(at netip.AddrPort) []byte {
	return elements.Frontend(model.FrontendKey{VIP: at.Addr(), Protocol: model.UDP, Port: at.Port()})
}

// counted reads the number of UDP flows that each endpoint has had.
func (g *ruleset) counted() (map[netip.AddrPort]uint64, error) {
	c, err := elements.Connect()
	if err != nil {
		return nil, err
	}
	out := map[netip.AddrPort]uint64{}
	for _, t := range g.tables {
		found, err := c.GetSetElements(t.sessions)
		if err != nil {
			return nil, fmt.Errorf("read counters of nftables table %s: %w", g.name, err)
		}
		counts := map[string]uint64{}
		for _, e := range found {
			if e.Counter != nil {
				counts[string(e.Key)] = e.Counter.Packets
			}
		}
		for at := range t.endpointUsers {
			out[at] = counts[string(endpointKey(at))]
		}
	}
	return out, nil
}

// route adds the routes and rules that deliver marked packets to this host.
func (g *ruleset) route() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, t := range g.tables {
		t.unusable = t.route(lo.Attrs().Index)
	}
	if g.tables[0].unusable != nil && g.tables[1].unusable != nil {
		return errors.Join(g.tables[0].unusable, g.tables[1].unusable)
	}
	return nil
}

func (t *familyTable) route(lo int) error {
	if err := netlink.RouteReplace(t.everythingLocal(lo)); err != nil {
		return fmt.Errorf("%s cannot be used on this gateway: route in table %d: %w", t.layerName(), envoyRoutingTable, err)
	}
	if err := netlink.RuleAdd(t.rule()); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s cannot be used on this gateway: routing rule for mark 0x%x: %w", t.layerName(), envoyMark, err)
	}
	return nil
}

func (f familyConfig) layerName() string {
	if f.v4 {
		return "IPv4"
	}
	return "IPv6"
}

// checkFamily returns an error if the address's family cannot be used here.
func (g *ruleset) checkFamily(vip netip.Addr) error { return g.tableOf(vip).unusable }

func (f familyConfig) everythingLocal(lo int) *netlink.Route {
	bits := int(f.size) * 8
	return &netlink.Route{Table: envoyRoutingTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, LinkIndex: lo, Family: f.netlink, Dst: &net.IPNet{IP: make(net.IP, f.size), Mask: net.CIDRMask(0, bits)}}
}

func (f familyConfig) rule() *netlink.Rule {
	r := netlink.NewRule()
	mask := uint32(0xffffffff)
	r.Family, r.Mark, r.Mask, r.Table, r.Priority = f.netlink, envoyMark, &mask, envoyRoutingTable, envoyRulePriority
	return r
}

// missing reports whether a table, the routing rule or its route is missing.
func (g *ruleset) missing() bool {
	c, err := elements.Connect()
	if err != nil {
		return false
	}
	for _, family := range []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6, nft.TableFamilyNetdev} {
		tables, err := c.ListTablesOfFamily(family)
		if err == nil && !slices.ContainsFunc(tables, func(other *nft.Table) bool { return other.Name == g.name }) {
			return true
		}
	}
	return slices.ContainsFunc(g.tables[:], func(t *familyTable) bool { return t.unusable == nil && t.lacksRoute() })
}

// lacksRoute reports whether the rule or the route for marked packets is missing.
func (f familyConfig) lacksRoute() bool {
	rules, err := dumps.Read(func() ([]netlink.Rule, error) {
		return netlink.RuleListFiltered(f.netlink, f.rule(), netlink.RT_FILTER_TABLE|netlink.RT_FILTER_MARK|netlink.RT_FILTER_PRIORITY)
	})
	if err == nil && len(rules) == 0 {
		return true
	}
	routes, err := dumps.Read(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(f.netlink, &netlink.Route{Table: envoyRoutingTable, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	return err == nil && len(routes) == 0
}

// remove removes everything.
func (g *ruleset) remove() error {
	if err := g.redirector.detachAll(); err != nil {
		return err
	}
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	for _, table := range []*nft.Table{g.tables[0].table, g.tables[1].table, g.echo.table} {
		c.AddTable(table)
		c.DelTable(table)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", g.name, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, t := range g.tables {
		if t.unusable != nil {
			continue
		}
		if err := netlink.RuleDel(t.rule()); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove routing rule: %w", err)
		}
		if err := netlink.RouteDel(t.everythingLocal(lo.Attrs().Index)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route: %w", err)
		}
	}
	return nil
}
