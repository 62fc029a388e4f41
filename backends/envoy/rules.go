package envoy

import (
	"encoding/binary"
	"fmt"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
)

// layout is one of the ways to bring packets to Envoy.
type layout int

const (
	// untracked spares the packets between clients and Envoy connection tracking, which costs more than all else that the
	// guard does. Nobody else can rewrite what comes for a VIP.
	untracked layout = iota
	// tracked is for hosts where somebody rewrites addresses: what is rewritten is not taken. A chain for NAT that decides
	// nothing keeps the rewriting of known connections on when the last other one goes, such as when another backend was here.
	tracked
	// closing follows untracked when Envoy is to go: connections that it has go on, all else is refused.
	closing
	// yielding is closing where somebody comes next: all else is left to that one.
	yielding
)

// Chains that decide about packets.
const (
	chainServe      = "serve"
	chainServeSome  = "serve_some"
	chainRefuseSome = "refuse_some"
	chainRefuse     = "refuse"
	chainSome       = "some"
	chainTake       = "take"
	chainAsk        = "ask"
)

// decidingChains are those for frontends, each with a set of them; most are in the first. (One verdict map would do instead, but
// when its table is replaced the kernel forgets its elements before the rules that ask for them.)
var decidingChains = [...]string{chainServe, chainServeSome, chainRefuseSome}

// beforeTracking is a priority before connection tracking (-200), and behind the reassembly of fragments (-400).
const beforeTracking = -301

// create adds the table with its sets and rules to the transaction.
func (t *guardTable) create(c *nft.Conn, l layout) error {
	c.AddTable(t.table)
	for _, name := range append(decidingChains[:], chainRefuse, chainAsk, chainSome) {
		c.AddChain(t.chain(name))
	}
	for _, s := range append([]*nft.Set{t.vips, t.lists, t.endpoints, t.sessions, t.next}, t.decided[:]...) {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	t.fill(c, t.chain(chainRefuse), append(protocolIs(unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}),
		append(protocolIs(unix.IPPROTO_UDP), &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: t.unreachable}), drop())
	// The kernel takes one from the packet's TTL when it sends the copy.
	t.fill(c, t.chain(chainAsk), setMeta(expr.MetaKeyPRIORITY, 0), slices.Concat(t.key(), lookupInto(t.next), []expr.Any{&expr.Dup{RegAddr: 1}}), drop())
	t.fill(c, t.chain(chainServe), append(metaIs(expr.MetaKeyPRIORITY, unknownPriority), jump(chainAsk)...))
	switch l {
	case closing:
		t.fill(c, t.chain(chainServe), append(isSYN(), jump(chainRefuse)...), append(protocolIs(unix.IPPROTO_UDP), jump(chainRefuse)...))
	case yielding:
		// One that gets here has the ports of a connection that has just ended, of which connection tracking still knows. That is
		// forgotten in a moment (drain), and the client asks again.
		t.fill(c, t.chain(chainServe), append(isSYN(), drop()...), append(protocolIs(unix.IPPROTO_UDP), drop()...))
	}
	t.fill(c, t.chain(chainServe), takePacket())
	// A list's chain returns where the source is in it, and not to the chain of all lists: where that knows no list nobody is let in.
	t.fill(c, t.chain(chainSome), slices.Concat(t.key(), decidedBy(t.lists)), drop())
	t.fill(c, t.chain(chainServeSome), call(chainSome), jump(chainServe))
	t.fill(c, t.chain(chainRefuseSome), call(chainSome), jump(chainRefuse))
	t.vipChain(c)
	t.baseChains(c, l)
	return nil
}

// vipChain is for packets that come for a VIP.
func (t *guardTable) vipChain(c *nft.Conn) {
	var rules [][]expr.Any
	for i, chain := range decidingChains {
		rules = append(rules, slices.Concat(t.key(), in(t.decided[i]), jump(chain)))
	}
	for _, kind := range t.errors {
		rules = append(rules, append(t.icmpIs(kind), takePacket()...))
	}
	// Nothing gets behind the first one. But where there is a rule like the second the kernel puts fragments together before
	// anybody sees them, as it does where connections are tracked (nft_tproxy_init).
	rules = append(rules, jump(chainRefuse), append(protocolIs(unix.IPPROTO_UDP), &expr.Immediate{Register: 1, Data: []byte{0, 1}},
		&expr.TProxy{Family: byte(t.family), TableFamily: byte(t.family), RegPort: 1}))
	t.fill(c, c.AddChain(t.chain("vip")), rules...)
}

func (t *guardTable) baseChains(c *nft.Conn, l layout) {
	toVIP := append([]expr.Any{t.load(t.destination, 1)}, in(t.vips)...)
	// Behind everybody else's chains of this hook, so that none of them sees the mark; and before them in the next one.
	t.base(c, chainTake, nft.ChainHookPrerouting, 300, slices.Concat(toVIP, jump("vip")))
	t.base(c, "scrub", nft.ChainHookInput, -400, append(metaIs(expr.MetaKeyMARK, guardMark), setMeta(expr.MetaKeyMARK, 0)...))
	answers := slices.Concat([]expr.Any{t.load(t.source, 1)}, in(t.vips), []expr.Any{&expr.Notrack{}})
	switch l {
	case untracked:
		t.base(c, "untrack", nft.ChainHookPrerouting, beforeTracking, append(toVIP, &expr.Notrack{}))
		t.base(c, "untrack_answers", nft.ChainHookOutput, beforeTracking, answers)
	case tracked:
		t.natChain(c, "keep", -100)
		t.countSessions(c) // A chain for NAT alone does not have connections tracked when the last other one has gone.
	case closing, yielding:
		// What goes on is bound to the VIP itself, before another backend binds it to an endpoint.
		stay := slices.Concat(toVIP, isSYN(), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
		t.fill(c, t.natChain(c, "stay", -101), stay, slices.Concat(protocolIs(unix.IPPROTO_TCP), toVIP, []expr.Any{
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(t.family), RegAddrMin: 1}}))
		// A tracked answer would have the next datagram of the flow come here.
		t.base(c, "untrack_answers", nft.ChainHookOutput, beforeTracking, append(protocolIs(unix.IPPROTO_UDP), answers...))
	}
}

// countSessions counts the flows to endpoints of UDP frontends, which has them tracked, and whatever else this host sends; so it is
// not done before there is such a frontend. It stays as long as the table.
func (t *guardTable) countSessions(c *nft.Conn) {
	if t.counts {
		return
	}
	t.counts = true
	t.base(c, "count", nft.ChainHookOutput, 0, slices.Concat(isNew(), protocolIs(unix.IPPROTO_UDP), t.key(), in(t.sessions)))
}

func (t *guardTable) natChain(c *nft.Conn, name string, priority nft.ChainPriority) *nft.Chain {
	policy := nft.ChainPolicyAccept
	return c.AddChain(&nft.Chain{Table: t.table, Name: name, Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPrerouting, Priority: &priority, Policy: &policy})
}

// takeAnswers has what endpoints answer to clients of transparent frontends delivered to Envoy. It asks for the socket of every
// packet that is not for a VIP, so it is not done before there is such a frontend; it stays as long as the table.
func (t *guardTable) takeAnswers(c *nft.Conn) {
	if t.answers {
		return
	}
	t.answers = true
	t.fill(c, t.chain(chainTake),
		slices.Concat(protocolIs(unix.IPPROTO_TCP), socketHas(expr.SocketKeyTransparent, 1), socketHas(expr.SocketKeyWildcard, 0), takePacket()),
		slices.Concat(protocolIs(unix.IPPROTO_UDP), t.sender(), in(t.endpoints), socketHas(expr.SocketKeyTransparent, 1), takePacket()))
}

// refuseNew lets only connections go on that Envoy has.
func (g *guard) refuseNew() error {
	if g.layout == untracked {
		g.layout = closing
		if rewritten, err := flowsAreRewritten(); err != nil {
			return err
		} else if rewritten {
			g.layout = yielding
		}
		return g.write(g.all())
	}
	c, err := elements.Connect()
	if err != nil {
		return err
	}
	for _, t := range g.tables {
		c.InsertRule(&nft.Rule{Table: t.table, Chain: t.chain(chainServe), Exprs: append(isNew(), jump(chainRefuse)...)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("refuse new flows in nftables table %s: %w", g.name, err)
	}
	return nil
}

// flowsAreRewritten reports whether this host has chains for NAT, and so may have connections that need them.
func flowsAreRewritten() (bool, error) {
	c, err := elements.Connect()
	if err != nil {
		return false, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return false, fmt.Errorf("list nftables chains (needs CAP_NET_ADMIN): %w", err)
	}
	return slices.ContainsFunc(chains, func(chain *nft.Chain) bool { return chain.Type == nft.ChainTypeNAT }), nil
}

func (t *guardTable) chain(name string) *nft.Chain { return &nft.Chain{Table: t.table, Name: name} }

func (t *guardTable) fill(c *nft.Conn, chain *nft.Chain, rules ...[]expr.Any) {
	for _, r := range rules {
		c.AddRule(&nft.Rule{Table: t.table, Chain: chain, Exprs: r})
	}
}

func (t *guardTable) base(c *nft.Conn, name string, hook *nft.ChainHook, priority nft.ChainPriority, rule []expr.Any) {
	policy := nft.ChainPolicyAccept
	t.fill(c, c.AddChain(&nft.Chain{Table: t.table, Name: name, Type: nft.ChainTypeFilter, Hooknum: hook, Priority: &priority, Policy: &policy}), rule)
}

// takePacket has the packet delivered to this host.
func takePacket() []expr.Any {
	return append(setMeta(expr.MetaKeyMARK, guardMark), &expr.Verdict{Kind: expr.VerdictAccept})
}

func metaIs(key expr.MetaKey, value uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: nativeEndian(value)}}
}

func setMeta(key expr.MetaKey, value uint32) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: 1, Data: nativeEndian(value)}, &expr.Meta{Key: key, Register: 1, SourceRegister: true}}
}

// isSYN matches the first segment of a TCP connection.
func isSYN() []expr.Any {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	return append(protocolIs(unix.IPPROTO_TCP), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}})
}

// isNew matches the first packet of a flow. Where there is such a rule connections are tracked.
func isNew() []expr.Any {
	return []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: nativeEndian(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}

func (f guardFamily) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

// key loads destination, protocol and port.
func (f guardFamily) key() []expr.Any {
	word := f.size / 4
	return []expr.Any{f.load(f.destination, unix.NFT_REG32_00), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG32_00 + word},
		&expr.Payload{DestRegister: unix.NFT_REG32_00 + word + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

// sender loads source, protocol and source port.
func (f guardFamily) sender() []expr.Any {
	word := f.size / 4
	return []expr.Any{f.load(f.source, unix.NFT_REG32_00), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG32_00 + word},
		&expr.Payload{DestRegister: unix.NFT_REG32_00 + word + 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2}}
}

// socketHas asks about the socket of this host that the packet would meet if its destination were the host's own.
func socketHas(key expr.SocketKey, value byte) []expr.Any {
	return []expr.Any{&expr.Socket{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}}}
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

// lookupInto has a map's value for what was loaded from the first register on take its place. The rule ends where there is none.
func lookupInto(s *nft.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}}
}

// jump goes to a chain that decides.
func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// call goes to a chain that may return.
func call(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// decidedBy has the map's verdict for what was loaded from the first register on decide.
func decidedBy(s *nft.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func nativeEndian(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
