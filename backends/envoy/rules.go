package envoy

import (
	"fmt"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/backends/nftables/rules"
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
	t.fill(c, t.chain(chainRefuse), append(rules.Protocol(unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}),
		append(rules.Protocol(unix.IPPROTO_UDP), &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: t.unreachable}), []expr.Any{rules.Drop()})
	// The kernel takes one from the packet's TTL when it sends the copy.
	t.fill(c, t.chain(chainAsk), rules.SetMeta(expr.MetaKeyPRIORITY, 0), append(t.key(), rules.Map(t.next.Name, 0, 0), &expr.Dup{RegAddr: 1}), []expr.Any{rules.Drop()})
	t.fill(c, t.chain(chainServe), append(rules.Meta(expr.MetaKeyPRIORITY, unknownPriority), rules.Goto(chainAsk)))
	switch l {
	case closing:
		t.fill(c, t.chain(chainServe), append(rules.Opening(), rules.Goto(chainRefuse)), append(rules.Protocol(unix.IPPROTO_UDP), rules.Goto(chainRefuse)))
	case yielding:
		// One that gets here has the ports of a connection that has just ended, of which connection tracking still knows. That is
		// forgotten in a moment (drain), and the client asks again.
		t.fill(c, t.chain(chainServe), append(rules.Opening(), rules.Drop()), append(rules.Protocol(unix.IPPROTO_UDP), rules.Drop()))
	}
	t.fill(c, t.chain(chainServe), takePacket())
	// A list's chain returns where the source is in it, and not to the chain of all lists: where that knows no list nobody is let in.
	t.fill(c, t.chain(chainSome), append(t.key(), rules.VerdictMap(t.lists.Name)), []expr.Any{rules.Drop()})
	t.fill(c, t.chain(chainServeSome), []expr.Any{rules.Jump(chainSome)}, []expr.Any{rules.Goto(chainServe)})
	t.fill(c, t.chain(chainRefuseSome), []expr.Any{rules.Jump(chainSome)}, []expr.Any{rules.Goto(chainRefuse)})
	t.vipChain(c)
	t.baseChains(c, l)
	return nil
}

// vipChain is for packets that come for a VIP.
func (t *guardTable) vipChain(c *nft.Conn) {
	var all [][]expr.Any
	for i, chain := range decidingChains {
		all = append(all, append(t.key(), rules.In(t.decided[i].Name, 0), rules.Goto(chain)))
	}
	for _, kind := range t.errors {
		all = append(all, append(rules.ICMP(t.icmp, kind), takePacket()...))
	}
	// Nothing gets behind the first one. But where there is a rule like the second the kernel puts fragments together before
	// anybody sees them, as it does where connections are tracked (nft_tproxy_init).
	all = append(all, []expr.Any{rules.Goto(chainRefuse)}, append(rules.Protocol(unix.IPPROTO_UDP), &expr.Immediate{Register: 1, Data: []byte{0, 1}},
		&expr.TProxy{Family: byte(t.family), TableFamily: byte(t.family), RegPort: 1}))
	t.fill(c, c.AddChain(t.chain("vip")), all...)
}

func (t *guardTable) baseChains(c *nft.Conn, l layout) {
	toVIP := t.receiverIn(t.vips)
	// Behind everybody else's chains of this hook, so that none of them sees the mark; and before them in the next one.
	t.base(c, chainTake, nft.ChainHookPrerouting, 300, slices.Concat(toVIP, []expr.Any{rules.Goto("vip")}))
	t.base(c, "scrub", nft.ChainHookInput, -400, append(rules.Meta(expr.MetaKeyMARK, guardMark), rules.SetMeta(expr.MetaKeyMARK, 0)...))
	answers := append(t.senderIn(t.vips), &expr.Notrack{})
	switch l {
	case untracked:
		t.base(c, "untrack", nft.ChainHookPrerouting, beforeTracking, slices.Concat(toVIP, []expr.Any{&expr.Notrack{}}))
		t.base(c, "untrack_answers", nft.ChainHookOutput, beforeTracking, answers)
	case tracked:
		t.natChain(c, "keep", -100)
		t.countSessions(c) // A chain for NAT alone does not have connections tracked when the last other one has gone.
	case closing, yielding:
		// What goes on is bound to the VIP itself, before another backend binds it to an endpoint.
		stay := slices.Concat(toVIP, rules.Opening(), []expr.Any{rules.Return()})
		t.fill(c, t.natChain(c, "stay", -101), stay, slices.Concat(rules.Protocol(unix.IPPROTO_TCP), toVIP, []expr.Any{
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(t.family), RegAddrMin: 1}}))
		// A tracked answer would have the next datagram of the flow come here.
		t.base(c, "untrack_answers", nft.ChainHookOutput, beforeTracking, append(rules.Protocol(unix.IPPROTO_UDP), answers...))
	}
}

// countSessions counts the flows to endpoints of UDP frontends, which has them tracked, and whatever else this host sends; so it is
// not done before there is such a frontend. It stays as long as the table.
func (t *guardTable) countSessions(c *nft.Conn) {
	if t.counts {
		return
	}
	t.counts = true
	t.base(c, "count", nft.ChainHookOutput, 0, slices.Concat(isNew(), rules.Protocol(unix.IPPROTO_UDP), t.key(), []expr.Any{rules.In(t.sessions.Name, 0)}))
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
		slices.Concat(rules.Protocol(unix.IPPROTO_TCP), rules.Socket(expr.SocketKeyTransparent, 1), rules.Socket(expr.SocketKeyWildcard, 0), takePacket()),
		slices.Concat(rules.Protocol(unix.IPPROTO_UDP), t.sender(), []expr.Any{rules.In(t.endpoints.Name, 0)}, rules.Socket(expr.SocketKeyTransparent, 1), takePacket()))
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
		c.InsertRule(&nft.Rule{Table: t.table, Chain: t.chain(chainServe), Exprs: append(isNew(), rules.Goto(chainRefuse))})
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

func (t *guardTable) fill(c *nft.Conn, chain *nft.Chain, all ...[]expr.Any) {
	for _, r := range all {
		c.AddRule(&nft.Rule{Table: t.table, Chain: chain, Exprs: r})
	}
}

func (t *guardTable) base(c *nft.Conn, name string, hook *nft.ChainHook, priority nft.ChainPriority, rule []expr.Any) {
	policy := nft.ChainPolicyAccept
	t.fill(c, c.AddChain(&nft.Chain{Table: t.table, Name: name, Type: nft.ChainTypeFilter, Hooknum: hook, Priority: &priority, Policy: &policy}), rule)
}

// takePacket has the packet delivered to this host.
func takePacket() []expr.Any {
	return append(rules.SetMeta(expr.MetaKeyMARK, guardMark), rules.Accept())
}

// isNew matches the first packet of a flow.
func isNew() []expr.Any { return rules.CtHas(expr.CtKeySTATE, expr.CtStateBitNEW) }

// key loads destination, protocol and port.
func (f guardFamily) key() []expr.Any { return rules.Destination(f.destination, f.size, 0) }

// sender loads source, protocol and source port.
func (f guardFamily) sender() []expr.Any { return rules.Source(f.source, f.size, 0) }

// receiverIn and senderIn match packets to, and from, an address in the set.
func (f guardFamily) receiverIn(set *nft.Set) []expr.Any {
	return []expr.Any{rules.Network(f.destination, f.size, 0), rules.In(set.Name, 0)}
}

func (f guardFamily) senderIn(set *nft.Set) []expr.Any {
	return []expr.Any{rules.Network(f.source, f.size, 0), rules.In(set.Name, 0)}
}
