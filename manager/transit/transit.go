// Package transit keeps a gateway's host from being a router for other hosts. Dataplanes need IP forwarding, and the kernel forwards packets of any
// host: without the filter, a host on the clients' segment would reach the nodes' network by the gateway, and a tenant's node the networks of the
// management cluster.
//
// An nftables table drops packets that arrive at a segment and leave by a segment. Segments are the interfaces at which the gateway announces addresses,
// by which it reaches endpoints, and of its default routes. Traffic from and to pods of this host is not affected. The filter passes flows whose
// destination connection tracking rewrites, as for frontends of nftables and for kube-proxy, and packets from and to the addresses of frontends with
// mode direct: their answers pass this host if the gateway is the nodes' router.
//
// Packets to forbidden networks, those of the management cluster's Services and pods, are dropped before destinations are rewritten. Without forbidden
// networks, a host on a segment reaches Services by the gateway's kube-proxy, as by that of any node.
package transit

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/core/ipam"
)

// tableName is the name of the table, of family inet.
const tableName = "kubelb-transit"

// setSegments is the name of the set with the segments.
const setSegments = "segments"

// Rules is the content of the table.
type Rules struct {
	// Segments are names of interfaces.
	Segments []string
	// Direct are the addresses of frontends with mode direct.
	Direct []netip.Addr
	// Forbidden are networks to which nothing is forwarded between segments, even if the destination would be rewritten.
	Forbidden []netip.Prefix
	// Tracked: the host tracks connections. On other hosts, rules about connections would turn on connection tracking, which costs time for each packet.
	Tracked bool
}

func (r Rules) equal(o Rules) bool {
	return slices.Equal(r.Segments, o.Segments) && slices.Equal(r.Direct, o.Direct) && slices.Equal(r.Forbidden, o.Forbidden) && r.Tracked == o.Tracked
}

// Filter is the table in this process's network namespace. The zero Filter replaces a table of a former process.
type Filter struct {
	applied *Rules
}

// Apply sets the rules, whose lists are sorted. It writes nothing if the table already has them.
func (f *Filter) Apply(r Rules) error {
	err := f.apply(r)
	if err == nil || len(r.Forbidden) == 0 {
		return err
	}
	// A kernel without route lookups in rules (nft_fib_inet) can do the rest.
	r.Forbidden = nil
	if f.apply(r) == nil {
		return fmt.Errorf("drop packets to forbidden networks: %w", err)
	}
	return err
}

func (f *Filter) apply(r Rules) error {
	c, err := nft.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	if f.applied != nil && f.applied.equal(r) {
		there, err := tableExists(c)
		if err != nil || there {
			return err
		}
	}
	f.applied = nil
	table := &nft.Table{Name: tableName, Family: nft.TableFamilyINet}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	if err := r.add(c, table); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table inet %s (needs CAP_NET_ADMIN and a kernel with nf_tables for family inet): %w", tableName, err)
	}
	f.applied = &Rules{slices.Clone(r.Segments), slices.Clone(r.Direct), slices.Clone(r.Forbidden), r.Tracked}
	return nil
}

// Remove removes the table, if it exists.
func (f *Filter) Remove() error {
	c, err := nft.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	f.applied = nil
	there, err := tableExists(c)
	if err != nil || !there {
		return err
	}
	c.DelTable(&nft.Table{Name: tableName, Family: nft.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table inet %s: %w", tableName, err)
	}
	return nil
}

func tableExists(c *nft.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nft.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables (needs CAP_NET_ADMIN): %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nft.Table) bool { return t.Name == tableName }), nil
}

func (r Rules) add(c *nft.Conn, table *nft.Table) error {
	segments := &nft.Set{Table: table, Name: setSegments, KeyType: nft.TypeIFName, KeyByteOrder: binaryutil.NativeEndian} // tools print the set by this order
	var names []nft.SetElement
	for _, name := range r.Segments {
		names = append(names, nft.SetElement{Key: append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)})
	}
	if err := c.AddSet(segments, names); err != nil {
		return fmt.Errorf("set %s: %w", setSegments, err)
	}
	if err := r.addForbidden(c, table, segments); err != nil {
		return err
	}
	accept := nft.ChainPolicyAccept
	chain := c.AddChain(&nft.Chain{Table: table, Name: "forward", Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookForward, Priority: nft.ChainPriorityFilter, Policy: &accept})
	rule := func(exprs ...[]expr.Any) {
		c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: slices.Concat(exprs...)})
	}
	if r.Tracked {
		rule(isRewritten(), verdict(expr.VerdictAccept))
	}
	for _, f := range families {
		direct := &nft.Set{Table: table, Name: f.set, KeyType: f.address}
		if err := c.AddSet(direct, f.elements(r.Direct)); err != nil {
			return fmt.Errorf("set %s: %w", f.set, err)
		}
		for _, offset := range []uint32{f.source, f.destination} {
			rule(f.isFamily(), f.addressIn(direct, offset), verdict(expr.VerdictAccept))
		}
	}
	rule(interfaceIn(expr.MetaKeyIIFNAME, segments), interfaceIn(expr.MetaKeyOIFNAME, segments), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop))
	return nil
}

// addForbidden drops packets that arrive at a segment for a forbidden network, unless the address is this host's or is reached by an interface that is no segment,
// as addresses of its pods are. It does so before destinations are rewritten: this host's kube-proxy rewrites packets for a Service from any host.
func (r Rules) addForbidden(c *nft.Conn, table *nft.Table, segments *nft.Set) error {
	if len(r.Forbidden) == 0 {
		return nil
	}
	accept := nft.ChainPolicyAccept
	chain := c.AddChain(&nft.Chain{Table: table, Name: "prerouting", Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookPrerouting, Priority: nft.ChainPriorityMangle, Policy: &accept})
	for _, f := range families {
		forbidden := &nft.Set{Table: table, Name: f.forbidden, KeyType: f.address, Interval: true}
		if err := c.AddSet(forbidden, f.intervals(r.Forbidden)); err != nil {
			return fmt.Errorf("set %s: %w", f.forbidden, err)
		}
		sent := slices.Concat(interfaceIn(expr.MetaKeyIIFNAME, segments), f.isFamily(), f.addressIn(forbidden, f.destination))
		drop := append([]expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop)...)
		for _, exprs := range [][]expr.Any{
			slices.Concat(sent, isLocal(), verdict(expr.VerdictAccept)),
			slices.Concat(sent, leadsInto(segments), drop),
			slices.Concat(sent, hasNoRoute(), drop),
		} {
			c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	}
	return nil
}

// family describes the header of IPv4 or IPv6.
type family struct {
	number              byte
	v4                  bool
	set, forbidden      string
	address             nft.SetDatatype
	source, destination uint32
}

var families = [2]family{
	{unix.NFPROTO_IPV4, true, "direct4", "forbidden4", nft.TypeIPAddr, 12, 16},
	{unix.NFPROTO_IPV6, false, "direct6", "forbidden6", nft.TypeIP6Addr, 8, 24},
}

func (f family) elements(addresses []netip.Addr) (out []nft.SetElement) {
	for _, a := range addresses {
		if a.Is4() == f.v4 {
			out = append(out, nft.SetElement{Key: a.AsSlice()})
		}
	}
	return out
}

// intervals returns the networks of the family as elements of an interval set: the first address of each, and the address after its last, if there is one.
func (f family) intervals(networks []netip.Prefix) (out []nft.SetElement) {
	for _, r := range ipam.MergeNetworks(networks) {
		if r.First.Is4() != f.v4 {
			continue
		}
		out = append(out, nft.SetElement{Key: r.First.AsSlice()})
		if behind := r.Last.Next(); behind.IsValid() {
			out = append(out, nft.SetElement{Key: behind.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func (f family) isFamily() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.number}}}
}

func (f family) addressIn(set *nft.Set, offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.address.Bytes},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

func interfaceIn(key expr.MetaKey, set *nft.Set) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// isLocal matches packets for an address of this host.
func isLocal() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
}

// leadsInto matches packets whose route leads to an interface of the set.
func leadsInto(segments *nft.Set) []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultOIFNAME: true}, &expr.Lookup{SourceRegister: 1, SetName: segments.Name, SetID: segments.ID}}
}

// hasNoRoute matches packets without a route to their destination.
func hasNoRoute() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultOIF: true}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)}}
}

// isRewritten matches both directions of a flow whose destination is rewritten (IPS_DST_NAT of nf_conntrack_common.h), and ICMP errors about it.
func isRewritten() []expr.Any {
	const rewritten = 1 << 5
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(rewritten), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}
