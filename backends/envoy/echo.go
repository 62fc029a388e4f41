package envoy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/dumps"
	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/backends/nftables/rules"
)

// echo has rules that answer echo requests for VIPs. The kernel answers only for its own addresses, and to rewrite the requests
// to one of these would send all packets of all connections through NAT. Each fragment of a request is answered by itself.
type echo struct {
	table *nft.Table
	vips  [2]*nft.Set // by family, as familyConfigs
	// requests has source and number of fragmented requests whose first fragment has been answered.
	requests   [2]*nft.Set
	interfaces map[int]bool
}

// Of a fragmented request, later fragments are answered for this time after the first one, and at most this many such requests are known.
const (
	requestTimeout = 5 * time.Second
	maxRequests    = 1 << 14
)

// echoChain is the prefix of the name of an interface's chain.
const echoChain = "echo-"

func newEcho(name string) *echo {
	e := &echo{table: &nft.Table{Name: name, Family: nft.TableFamilyNetdev}, interfaces: map[int]bool{}}
	for i, f := range familyConfigs {
		e.vips[i] = &nft.Set{Table: e.table, Name: "vips-" + f.layerName(), KeyType: f.address}
		e.requests[i] = &nft.Set{Table: e.table, Name: "requests-" + f.layerName(), KeyType: nft.MustConcatSetType(f.address, nft.TypeMark), Concatenation: true,
			Dynamic: true, HasTimeout: true, Timeout: requestTimeout, Size: maxRequests}
	}
	return e
}

// create adds the table to the transaction.
func (e *echo) create(c *nft.Conn) error {
	c.AddTable(e.table)
	for _, set := range slices.Concat(e.vips[:], e.requests[:]) {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	clear(e.interfaces)
	return nil
}

// set returns the set that a VIP belongs to.
func (e *echo) set(vip netip.Addr) *nft.Set {
	for i, f := range familyConfigs {
		if f.v4 == vip.Is4() {
			return e.vips[i]
		}
	}
	return nil
}

// ensureChains adds the rules for all interfaces with Ethernet addresses. A new interface with the name of a former one gets new rules, since rules
// contain the index of the interface.
func (e *echo) ensureChains() error {
	present, err := ethernet()
	if err != nil {
		return err
	}
	chains, err := e.chains()
	if err != nil {
		return err
	}
	if err := e.deleteStale(present, chains); err != nil {
		return err
	}
	for _, a := range present {
		if e.interfaces[a.Index] && chains[chainOf(a.Name)] {
			continue
		}
		if err := e.answerAt(a.Name, a.Index); err != nil {
			return err
		}
		e.interfaces[a.Index] = true
	}
	return nil
}

// ethernet returns the interfaces with Ethernet addresses.
func ethernet() (out []*netlink.LinkAttrs, err error) {
	links, err := dumps.Read(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if a := l.Attrs(); a.EncapType == "ether" {
			out = append(out, a)
		}
	}
	return out, nil
}

// deleteStale deletes the chains of interfaces that do not exist any more.
func (e *echo) deleteStale(present []*netlink.LinkAttrs, chains map[string]bool) error {
	indexes, names := map[int]bool{}, map[string]bool{}
	for _, a := range present {
		indexes[a.Index], names[chainOf(a.Name)] = true, true
	}
	maps.DeleteFunc(e.interfaces, func(index int, _ bool) bool { return !indexes[index] })
	for name := range chains {
		if names[name] {
			continue
		}
		c, err := elements.Connect()
		if err != nil {
			return err
		}
		c.DelChain(&nft.Chain{Table: e.table, Name: name})
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete chain %s of a former interface: %w", name, err)
		}
	}
	return nil
}

// chains returns the names of the chains in the table. Before Linux 6.16 the kernel removes a chain with its interface. Since then it keeps the chain
// for the next interface of that name.
func (e *echo) chains() (map[string]bool, error) {
	c, err := elements.Connect()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nft.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	names := map[string]bool{}
	for _, chain := range chains {
		if chain.Table.Name == e.table.Name && strings.HasPrefix(chain.Name, echoChain) {
			names[chain.Name] = true
		}
	}
	return names, nil
}

// chainOf returns the name of an interface's chain.
func chainOf(name string) string { return echoChain + strings.ReplaceAll(name, ".", "_") }

func (e *echo) answerAt(name string, index int) error {
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	e.addAnswer(c, name, index)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("answer echo requests at interface %s: %w", name, err)
	}
	return nil
}

// addAnswer adds the chain of an interface to the transaction.
func (e *echo) addAnswer(c *nft.Conn, name string, index int) {
	policy := nft.ChainPolicyAccept
	chain := c.AddChain(&nft.Chain{Table: e.table, Name: chainOf(name), Device: name, Type: nft.ChainTypeFilter,
		Hooknum: nft.ChainHookIngress, Priority: nft.ChainPriorityRef(-500), Policy: &policy})
	c.FlushChain(chain)
	for i, f := range familyConfigs {
		for _, piece := range []piece{whole, first, later} {
			c.AddRule(&nft.Rule{Table: e.table, Chain: chain, Exprs: f.answerEcho(piece, e.vips[i], e.requests[i], index)})
		}
	}
}

// piece is a whole packet, or a fragment of one.
type piece int

const (
	whole piece = iota
	first
	later
)

// isPieceOfICMP matches pieces of ICMP messages, and ends with the number that all fragments of a packet have in the register of a word.
func (f familyConfig) isPieceOfICMP(p piece, number int) []expr.Any {
	const fragmentHeader, fragmentAt = 44, 40
	masked := func(offset uint32, mask [2]byte) []expr.Any {
		return []expr.Any{rules.Network(offset, 2, 0), &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: mask[:], Xor: []byte{0, 0}}}
	}
	not := func(high, low byte) expr.Any {
		return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{high, low}}
	}
	if f.v4 {
		out := append(rules.EtherType(0x08, 0x00), rules.Network(9, 1, 0), rules.Equals(unix.IPPROTO_ICMP))
		switch p {
		case whole:
			return append(append(out, masked(6, [2]byte{0x3f, 0xff})...), rules.Equals(0, 0))
		case first:
			out = append(append(out, masked(6, [2]byte{0x3f, 0xff})...), rules.Equals(0x20, 0))
		case later:
			out = append(append(out, masked(6, [2]byte{0x1f, 0xff})...), not(0, 0))
		}
		return append(out, rules.Network(4, 2, number))
	}
	out := append(rules.EtherType(0x86, 0xdd), rules.Network(6, 1, 0))
	if p == whole {
		return append(out, rules.Equals(unix.IPPROTO_ICMPV6))
	}
	out = append(out, rules.Equals(fragmentHeader), rules.Network(fragmentAt, 1, 0), rules.Equals(unix.IPPROTO_ICMPV6))
	if p == first {
		out = append(append(out, masked(fragmentAt+2, [2]byte{0xff, 0xf9})...), rules.Equals(0, 1))
	} else {
		out = append(append(out, masked(fragmentAt+2, [2]byte{0xff, 0xf8})...), not(0, 0))
	}
	return append(out, rules.Network(fragmentAt+4, 4, number))
}

// answerEcho turns a request, or a fragment of one, into its answer: it swaps the addresses and the Ethernet addresses, sets type and TTL, and sends it
// from the interface at which it arrived. Swapping addresses does not change the ICMP checksum.
func (f familyConfig) answerEcho(p piece, vips, requests *nft.Set, link int) []expr.Any {
	network, transport, ethernet := expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader, expr.PayloadBaseLLHeader
	load := func(base expr.PayloadBase, offset, length, register uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
	}
	const a, b = unix.NFT_REG_1, unix.NFT_REG_2
	write := func(base expr.PayloadBase, offset, length, register uint32, checksum ...uint32) expr.Any {
		w := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: register, Base: base, Offset: offset, Len: length}
		if len(checksum) > 0 {
			w.CsumType, w.CsumOffset = expr.CsumTypeInet, checksum[0]
		}
		return w
	}
	swap := func(base expr.PayloadBase, first, second, length uint32, checksum ...uint32) []expr.Any {
		return []expr.Any{load(base, first, length, a), load(base, second, length, b), write(base, first, length, b, checksum...), write(base, second, length, a, checksum...)}
	}
	set := func(base expr.PayloadBase, offset uint32, value []byte, checksum ...uint32) []expr.Any {
		return []expr.Any{&expr.Immediate{Register: a, Data: value}, write(base, offset, uint32(len(value)), a, checksum...)}
	}
	const ttl, key = 64, 4 // the key is in the registers from this word on
	source := rules.Network(f.source, f.size, key)
	limit := &expr.Limit{Type: expr.LimitTypePkts, Rate: 1000, Unit: expr.LimitTimeSecond, Burst: 100}
	out := append(f.isPieceOfICMP(p, key+int(f.size/4)), rules.Network(f.destination, f.size, 0), rules.In(vips.Name, 0))
	if p != later {
		out = append(out, load(transport, 0, 1, 1), rules.Equals(f.echo))
	}
	switch p {
	case first:
		out = append(out, source, &expr.Dynset{SrcRegKey: rules.Register(key), SetName: requests.Name, Operation: uint32(unix.NFT_DYNSET_OP_ADD)})
	case later:
		out = append(out, source, rules.In(requests.Name, key))
	}
	out = append(out, limit)
	if f.v4 {
		out = append(out, swap(network, f.source, f.destination, 4, 10)...)
		out = append(out, set(network, 8, []byte{ttl, unix.IPPROTO_ICMP}, 10)...)
	} else {
		out = append(out, swap(network, f.source, f.destination, 16)...)
		out = append(out, set(network, 7, []byte{ttl})...)
	}
	if p != later {
		out = append(out, set(transport, 0, []byte{f.echoReply, 0}, 2)...)
	}
	out = append(out, swap(ethernet, 0, 6, 6)...)
	return append(out, &expr.Immediate{Register: a, Data: rules.Native(uint32(link))}, &expr.Dup{RegDev: a, IsRegDevSet: true}, rules.Drop())
}
