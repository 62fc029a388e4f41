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

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/core/model"
)

// guard brings packets for VIPs to Envoy's sockets. A VIP is on no interface: packets for a frontend get a mark in an
// nftables table, and a rule routes what has the mark to this host. Everything else that comes for a VIP is refused there,
// so that no other socket of the host is reachable through one; and so is what the source ranges do not allow, TCP and UDP
// alike, which Envoy could do only for TCP, and only after it has accepted the connection.
type guard struct {
	name   string
	tables [2]*guardTable
	echo   *echo
	asking *asking
	layout layout
}

// guardMark marks packets on their way to Envoy, guardRoutes is the routing table for them, guardPriority its rule's place.
const (
	guardMark     = 0x6b756576
	guardRoutes   = 27509
	guardPriority = 27509
)

// guardTable is the table of a family.
type guardTable struct {
	guardFamily
	table *nft.Table
	vips  *nft.Set
	// lists leads a restricted frontend to the chain of its source ranges.
	lists *nft.Set
	// decided are the frontends that each of the decidingChains decides about.
	decided [len(decidingChains)]*nft.Set
	// endpoints are those of UDP frontends, with protocol and port; sessions counts the flows to them, which Envoy does not.
	endpoints, sessions *nft.Set
	// next is the gateway to ask about connections to a frontend that are not known here.
	next          *nft.Set
	vipUsers      map[netip.Addr]int
	listUsers     map[string]int
	endpointUsers map[netip.AddrPort]int
	known         map[model.FrontendKey]guarded
	// answers: those to clients of transparent frontends are taken.
	answers bool
	// counts: flows to the endpoints of UDP frontends are counted.
	counts bool
	// unusable is why packets of this family cannot be had, such as where IPv6 is turned off.
	unusable error
}

type guardFamily struct {
	family              nft.TableFamily
	v4                  bool
	address             nft.SetDatatype
	source, destination uint32
	size                uint32
	icmp                byte
	echo                byte
	errors              []byte
	unreachable         uint8
	netlink             int
}

var guardFamilies = [2]guardFamily{
	{nft.TableFamilyIPv4, true, nft.TypeIPAddr, 12, 16, 4, unix.IPPROTO_ICMP, 8, []byte{3, 11, 12}, 3, netlink.FAMILY_V4},
	{nft.TableFamilyIPv6, false, nft.TypeIP6Addr, 8, 24, 16, unix.IPPROTO_ICMPV6, 128, []byte{1, 2, 3, 4}, 4, netlink.FAMILY_V6},
}

func newGuard(name string) *guard {
	g := &guard{name: name, echo: newEcho(name), asking: newAsking()}
	for i, f := range guardFamilies {
		t := &guardTable{guardFamily: f, table: &nft.Table{Name: name, Family: f.family}, vipUsers: map[netip.Addr]int{}, listUsers: map[string]int{}, endpointUsers: map[netip.AddrPort]int{}, known: map[model.FrontendKey]guarded{}}
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

// guarded is a frontend as the guard knows it.
type guarded struct {
	model.Frontend
	// served: Envoy listens for it. Else it is refused, to those whom its source ranges allow.
	served bool
	// endpoints are those of a UDP frontend.
	endpoints []netip.AddrPort
}

// asked is who may know connections to the frontend that are not known here.
func (f guarded) asked() model.Handover {
	if !f.served {
		return model.Handover{}
	}
	return f.Handover
}

// chain is the one that decides about packets for the frontend; none if they are refused like those for ports that nobody serves.
func (f guarded) chain() string {
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

// install makes tables, rules and routes anew, with nothing in the tables yet but what is given.
func (g *guard) install(all []guarded) error {
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
	return g.asking.detachEarlier()
}

// write makes all anew in the guard's layout.
func (g *guard) write(all []guarded) error {
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
		t.vipUsers, t.listUsers, t.endpointUsers, t.known = map[netip.Addr]int{}, map[string]int{}, map[netip.AddrPort]int{}, map[model.FrontendKey]guarded{}
	}
	if err := g.edit(c, all, nil); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make nftables table %s (needs CAP_NET_ADMIN and a kernel with nf_tables and conntrack): %w", g.name, err)
	}
	if err := g.echo.cover(); err != nil {
		return err
	}
	g.askAs(all, nil)
	return g.route()
}

// change brings frontends to what is given, and forgets others, in one transaction.
func (g *guard) change(set []guarded, gone []model.FrontendKey) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	if err := g.edit(c, set, gone); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		// What the kernel has is unknown now; all of it is written anew.
		return errors.Join(fmt.Errorf("change nftables table %s: %w", g.name, err), g.write(g.all()))
	}
	g.askAs(set, gone)
	return nil
}

// askAs has others be asked as frontends say. What cannot be done is tried again, and reported, by the next look (faults).
func (g *guard) askAs(set []guarded, gone []model.FrontendKey) {
	if g.asking.note(set, gone) {
		_ = g.asking.cover()
	}
}

func (g *guard) all() []guarded {
	var out []guarded
	for _, t := range g.tables {
		out = slices.AppendSeq(out, maps.Values(t.known))
	}
	return out
}

func (g *guard) tableOf(vip netip.Addr) *guardTable {
	for _, t := range g.tables {
		if t.v4 == vip.Is4() {
			return t
		}
	}
	return nil
}

// setChanges collects what goes into sets and out of them.
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

func (e setChanges) member(set *nft.Set, element nft.SetElement, was, is bool) {
	switch {
	case was && !is:
		e.remove[set] = append(e.remove[set], element)
	case is && !was:
		e.add[set] = append(e.add[set], element)
	}
}

func (g *guard) edit(c *nft.Conn, set []guarded, gone []model.FrontendKey) error {
	e := setChanges{map[*nft.Set][]nft.SetElement{}, map[*nft.Set][]nft.SetElement{}}
	vips, endpoints := map[netip.Addr]int{}, map[netip.AddrPort]int{}
	lists := newListChanges()
	replace := func(t *guardTable, key model.FrontendKey, before, after guarded) {
		t.differ(e, key, before, after)
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
			replace(t, key, before, guarded{})
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
			t.takeAnswers(c)
		}
		if len(f.endpoints) > 0 {
			g.tableOf(f.endpoints[0].Addr()).countSessions(c)
		}
		replace(t, f.FrontendKey, before, f)
	}
	for vip, change := range vips {
		t := g.tableOf(vip)
		was, is := count(t.vipUsers, vip, change)
		for _, set := range []*nft.Set{t.vips, g.echo.set(vip)} {
			e.member(set, nft.SetElement{Key: vip.AsSlice()}, was, is)
		}
	}
	for at, change := range endpoints {
		t := g.tableOf(at.Addr())
		was, is := count(t.endpointUsers, at, change)
		for _, set := range []*nft.Set{t.endpoints, t.sessions} {
			e.member(set, nft.SetElement{Key: endpointKey(at)}, was, is)
		}
	}
	if err := lists.begin(c); err != nil {
		return err
	}
	if err := e.send(c); err != nil {
		return err
	}
	lists.end(c)
	return nil
}

// count changes how many use something, and tells whether somebody did before and does now.
func count[K comparable](users map[K]int, of K, change int) (was, is bool) {
	before := users[of]
	if users[of] += change; users[of] == 0 {
		delete(users, of)
	}
	return before > 0, before+change > 0
}

// differ collects what leads from one state of a frontend to another.
func (t *guardTable) differ(e setChanges, k model.FrontendKey, before, after guarded) {
	key := nft.SetElement{Key: elements.Frontend(k)}
	for i, chain := range decidingChains {
		e.member(t.decided[i], key, before.chain() == chain, after.chain() == chain)
	}
	if was, is := before.asked().Next, after.asked().Next; was != is {
		if was.IsValid() {
			e.remove[t.next] = append(e.remove[t.next], key)
		}
		if is.IsValid() {
			e.add[t.next] = append(e.add[t.next], nft.SetElement{Key: key.Key, Val: is.AsSlice()})
		}
	}
}

// endpointKey is an endpoint of a UDP frontend in the sets.
func endpointKey(at netip.AddrPort) []byte {
	return elements.Frontend(model.FrontendKey{VIP: at.Addr(), Protocol: model.UDP, Port: at.Port()})
}

// counted reads how many UDP flows each endpoint has had.
func (g *guard) counted() (map[netip.AddrPort]uint64, error) {
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

// route has marked packets delivered to this host.
func (g *guard) route() error {
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

func (t *guardTable) route(lo int) error {
	if err := netlink.RouteReplace(t.everythingLocal(lo)); err != nil {
		return fmt.Errorf("%s is not to be had on this gateway: route in table %d: %w", t.layerName(), guardRoutes, err)
	}
	if err := netlink.RuleAdd(t.rule()); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s is not to be had on this gateway: routing rule for mark 0x%x: %w", t.layerName(), guardMark, err)
	}
	return nil
}

func (f guardFamily) layerName() string {
	if f.v4 {
		return "IPv4"
	}
	return "IPv6"
}

// usable says why frontends with the address cannot be served here.
func (g *guard) usable(vip netip.Addr) error { return g.tableOf(vip).unusable }

func (f guardFamily) everythingLocal(lo int) *netlink.Route {
	bits := int(f.size) * 8
	return &netlink.Route{Table: guardRoutes, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, LinkIndex: lo, Family: f.netlink, Dst: &net.IPNet{IP: make(net.IP, f.size), Mask: net.CIDRMask(0, bits)}}
}

func (f guardFamily) rule() *netlink.Rule {
	r := netlink.NewRule()
	mask := uint32(0xffffffff)
	r.Family, r.Mark, r.Mask, r.Table, r.Priority = f.netlink, guardMark, &mask, guardRoutes, guardPriority
	return r
}

// missing reports whether a table or a routing rule is gone.
func (g *guard) missing() bool {
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
	for _, t := range g.tables {
		if t.unusable != nil {
			continue
		}
		rules, err := netlink.RuleListFiltered(t.netlink, t.rule(), netlink.RT_FILTER_TABLE|netlink.RT_FILTER_MARK|netlink.RT_FILTER_PRIORITY)
		if err == nil && len(rules) == 0 {
			return true
		}
	}
	return false
}

// remove takes everything away.
func (g *guard) remove() error {
	if err := g.asking.leave(); err != nil {
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
