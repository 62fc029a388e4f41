package envoy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
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
	table                             *nft.Table
	vips, served, restricted, allowed *nft.Set
	vipUsers                          map[netip.Addr]int
	frontends                         map[model.FrontendKey]guarded
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
	g := &guard{name: name}
	for i, f := range guardFamilies {
		t := &guardTable{guardFamily: f, table: &nft.Table{Name: name, Family: f.family}, vipUsers: map[netip.Addr]int{}, frontends: map[model.FrontendKey]guarded{}}
		key := nft.MustConcatSetType(f.address, nft.TypeInetProto, nft.TypeInetService)
		t.vips = &nft.Set{Table: t.table, Name: "vips", KeyType: f.address}
		t.served = &nft.Set{Table: t.table, Name: "frontends", KeyType: key, Concatenation: true}
		t.restricted = &nft.Set{Table: t.table, Name: "restricted", KeyType: key, Concatenation: true}
		t.allowed = &nft.Set{Table: t.table, Name: "allowed", KeyType: nft.MustConcatSetType(f.address, nft.TypeInetProto, nft.TypeInetService, f.address), Concatenation: true, Interval: true}
		g.tables[i] = t
	}
	return g
}

// guarded is a frontend as the guard knows it.
type guarded struct {
	model.Frontend
	// served: Envoy listens for it. Else it is refused, to those whom its source ranges allow.
	served bool
}

// install makes tables, rules and routes anew, with nothing in the tables yet but what is given.
func (g *guard) install(all []guarded) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	for _, t := range g.tables {
		c.AddTable(t.table)
		c.DelTable(t.table)
		if err := t.create(c); err != nil {
			return err
		}
		t.vipUsers, t.frontends = map[netip.Addr]int{}, map[model.FrontendKey]guarded{}
	}
	if err := g.edit(c, all, nil); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make nftables table %s (needs CAP_NET_ADMIN and a kernel with nf_tables and conntrack): %w", g.name, err)
	}
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
		return errors.Join(fmt.Errorf("change nftables table %s: %w", g.name, err), g.install(g.all()))
	}
	return nil
}

func (g *guard) all() []guarded {
	var out []guarded
	for _, t := range g.tables {
		out = slices.AppendSeq(out, maps.Values(t.frontends))
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
	users := map[netip.Addr]int{}
	for _, key := range gone {
		t := g.tableOf(key.VIP)
		if before, known := t.frontends[key]; known {
			delete(t.frontends, key)
			users[key.VIP]--
			t.differ(e, key, before, guarded{})
		}
	}
	for _, f := range set {
		t := g.tableOf(f.VIP)
		before, known := t.frontends[f.FrontendKey]
		if !known {
			users[f.VIP]++
		}
		t.frontends[f.FrontendKey] = f
		t.differ(e, f.FrontendKey, before, f)
	}
	for vip, change := range users {
		t := g.tableOf(vip)
		before := t.vipUsers[vip]
		if t.vipUsers[vip] += change; t.vipUsers[vip] == 0 {
			delete(t.vipUsers, vip)
		}
		e.member(t.vips, nft.SetElement{Key: vip.AsSlice()}, before > 0, before+change > 0)
	}
	return e.send(c)
}

// differ collects what leads from one state of a frontend to another.
func (t *guardTable) differ(e setChanges, k model.FrontendKey, before, after guarded) {
	key := nft.SetElement{Key: elements.Frontend(k)}
	e.member(t.served, key, before.served, after.served)
	e.member(t.restricted, key, before.Restricted, after.Restricted)
	for _, p := range before.SourceRanges {
		e.member(t.allowed, elements.SourceRange(k, p), true, slices.Contains(after.SourceRanges, p))
	}
	for _, p := range after.SourceRanges {
		e.member(t.allowed, elements.SourceRange(k, p), slices.Contains(before.SourceRanges, p), true)
	}
}

// create adds the table with its sets and rules to the transaction.
func (t *guardTable) create(c *nft.Conn) error {
	c.AddTable(t.table)
	for _, s := range []*nft.Set{t.vips, t.served, t.restricted, t.allowed} {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	add := func(chain *nft.Chain, rules ...[]expr.Any) {
		c.AddChain(chain)
		for _, r := range rules {
			c.AddRule(&nft.Rule{Table: t.table, Chain: chain, Exprs: r})
		}
	}
	join := func(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }
	take := []expr.Any{&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, guardMark)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}, verdict(expr.VerdictAccept, "")}
	reset := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	unreachable := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: t.unreachable}}
	limit := []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: 1000, Unit: expr.LimitTimeSecond, Burst: 5}}
	toVIP := join([]expr.Any{t.load(t.destination, 1)}, in(t.vips))
	chain := func(name string) *nft.Chain { return &nft.Chain{Table: t.table, Name: name} }
	base := func(name string, kind nft.ChainType, hook *nft.ChainHook, priority nft.ChainPriority) *nft.Chain {
		policy := nft.ChainPolicyAccept
		return &nft.Chain{Table: t.table, Name: name, Type: kind, Hooknum: hook, Priority: &priority, Policy: &policy}
	}
	add(chain("check_source"), join(t.key(true), in(t.allowed), []expr.Any{verdict(expr.VerdictReturn, "")}), []expr.Any{verdict(expr.VerdictDrop, "")})
	add(chain("ports"), join(t.key(false), in(t.restricted), []expr.Any{verdict(expr.VerdictJump, "check_source")}), join(t.key(false), in(t.served), take))
	var vip [][]expr.Any
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		vip = append(vip, join(protocolIs(protocol), []expr.Any{verdict(expr.VerdictJump, "ports")}))
	}
	vip = append(vip, join(protocolIs(unix.IPPROTO_TCP), reset), join(protocolIs(unix.IPPROTO_UDP), unreachable))
	for _, kind := range t.errors {
		vip = append(vip, join(t.icmpIs(kind), take))
	}
	add(chain("vip"), append(vip, []expr.Any{verdict(expr.VerdictDrop, "")})...)
	// Behind everybody else's chains of this hook, so that none of them sees the mark; and before them in the next one.
	add(base("take", nft.ChainTypeFilter, nft.ChainHookPrerouting, 300), join(toVIP, []expr.Any{verdict(expr.VerdictJump, "vip")}))
	clear := []expr.Any{&expr.Immediate{Register: 1, Data: make([]byte, 4)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}
	add(base("scrub", nft.ChainTypeFilter, nft.ChainHookInput, -400), join(toVIP, clear))
	// The kernel answers an echo request only from an address of its own.
	add(base("echo", nft.ChainTypeNAT, nft.ChainHookPrerouting, -100), join(toVIP, t.icmpIs(t.echo), limit, []expr.Any{&expr.Redir{}}))
	return nil
}

func (f guardFamily) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

// key loads destination, protocol and port, and the source behind them if asked.
func (f guardFamily) key(source bool) []expr.Any {
	word := f.size / 4
	out := []expr.Any{f.load(f.destination, unix.NFT_REG32_00), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG32_00 + word},
		&expr.Payload{DestRegister: unix.NFT_REG32_00 + word + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
	if source {
		out = append(out, f.load(f.source, unix.NFT_REG32_00+word+2))
	}
	return out
}

func (f guardFamily) icmpIs(kind byte) []expr.Any {
	return append(protocolIs(f.icmp), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}})
}

func protocolIs(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}}}
}

// in looks up what was loaded from the first register on.
func in(s *nft.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

// route has marked packets delivered to this host.
func (g *guard) route() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, t := range g.tables {
		if err := netlink.RouteReplace(t.everythingLocal(lo.Attrs().Index)); err != nil {
			return fmt.Errorf("route in table %d: %w", guardRoutes, err)
		}
		if err := netlink.RuleAdd(t.rule()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("routing rule for mark 0x%x: %w", guardMark, err)
		}
	}
	return nil
}

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

// remove takes everything away.
func (g *guard) remove() error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	for _, t := range g.tables {
		c.AddTable(t.table)
		c.DelTable(t.table)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", g.name, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, t := range g.tables {
		if err := netlink.RuleDel(t.rule()); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove routing rule: %w", err)
		}
		if err := netlink.RouteDel(t.everythingLocal(lo.Attrs().Index)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route: %w", err)
		}
	}
	return nil
}
