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

// layout is one of the rulesets that deliver packets to Envoy.
type layout int

const (
	// untracked excludes packets between clients and Envoy from connection tracking, which costs more than all other rules. No
	// other program can rewrite packets for a VIP then.
	untracked layout = iota
	// tracked is for hosts with NAT rules: packets that are rewritten are not delivered to Envoy. An empty NAT chain keeps the
	// NAT of known connections working when the last other NAT chain is removed, as when this dataplane replaces another one.
	tracked
	// closing replaces untracked when Envoy is going to end: its connections go on, all other flows are refused.
	closing
	// yielding is closing if another dataplane takes over: all other flows are left to that one.
	yielding
)

// Chains for packets.
const (
	chainServe      = "serve"
	chainServeSome  = "serve_some"
	chainRefuseSome = "refuse_some"
	chainRefuse     = "refuse"
	chainSome       = "some"
	chainTake       = "take"
	chainAsk        = "ask"
)

// decidingChains are the chains for frontends. Each has a set of its frontends, and most frontends are in the first. A single
// verdict map does not work: when its table is replaced, the kernel removes its elements before the rules that use it.
var decidingChains = [...]string{chainServe, chainServeSome, chainRefuseSome}

// beforeTracking is a priority before connection tracking (-200), and behind the reassembly of fragments (-400).
const beforeTracking = -301

// create adds the table with its sets and rules to the transaction.
func (t *familyTable) create(c *nft.Conn, l layout) error {
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
	// The kernel lowers the packet's TTL by one when it sends the copy.
	t.fill(c, t.chain(chainAsk), rules.SetMeta(expr.MetaKeyPRIORITY, 0), append(t.key(), rules.Map(t.next.Name, 0, 0), &expr.Dup{RegAddr: 1}), []expr.Any{rules.Drop()})
	t.fill(c, t.chain(chainServe), append(rules.Meta(expr.MetaKeyPRIORITY, unknownPriority), rules.Goto(chainAsk)))
	switch l {
	case closing:
		t.fill(c, t.chain(chainServe), append(rules.Opening(), rules.Goto(chainRefuse)), append(rules.Protocol(unix.IPPROTO_UDP), rules.Goto(chainRefuse)))
	case yielding:
		// Such a packet has the ports of a connection that has just ended and is still in connection tracking. Its entry is deleted
		// in a moment (drain), and the client sends the packet again.
		t.fill(c, t.chain(chainServe), append(rules.Opening(), rules.Drop()), append(rules.Protocol(unix.IPPROTO_UDP), rules.Drop()))
	}
	t.fill(c, t.chain(chainServe), deliver())
	// The chain of a list returns to the caller of this chain if the source is in the list. If the map has no element, the packet is dropped.
	t.fill(c, t.chain(chainSome), append(t.key(), rules.VerdictMap(t.lists.Name)), []expr.Any{rules.Drop()})
	t.fill(c, t.chain(chainServeSome), []expr.Any{rules.Jump(chainSome)}, []expr.Any{rules.Goto(chainServe)})
	t.fill(c, t.chain(chainRefuseSome), []expr.Any{rules.Jump(chainSome)}, []expr.Any{rules.Goto(chainRefuse)})
	t.vipChain(c)
	t.baseChains(c, l)
	return nil
}

// vipChain adds the chain for packets to VIPs.
func (t *familyTable) vipChain(c *nft.Conn) {
	var all [][]expr.Any
	for i, chain := range decidingChains {
		all = append(all, append(t.key(), rules.In(t.decided[i].Name, 0), rules.Goto(chain)))
	}
	for _, kind := range t.errors {
		all = append(all, append(rules.ICMP(t.icmp, kind), deliver()...))
	}
	// No packet passes the first of these rules. The second one makes the kernel reassemble fragments before all rules, as it does
	// with connection tracking (nft_tproxy_init).
	all = append(all, []expr.Any{rules.Goto(chainRefuse)}, append(rules.Protocol(unix.IPPROTO_UDP), &expr.Immediate{Register: 1, Data: []byte{0, 1}},
		&expr.TProxy{Family: byte(t.family), TableFamily: byte(t.family), RegPort: 1}))
	t.fill(c, c.AddChain(t.chain("vip")), all...)
}

func (t *familyTable) baseChains(c *nft.Conn, l layout) {
	toVIP := t.destinationIn(t.vips)
	// The mark is set after all other chains of this hook, and removed before all others of the next, so that none of them sees it.
	t.base(c, chainTake, nft.ChainHookPrerouting, 300, slices.Concat(toVIP, []expr.Any{rules.Goto("vip")}))
	t.base(c, "scrub", nft.ChainHookInput, -400, append(rules.Meta(expr.MetaKeyMARK, envoyMark), rules.SetMeta(expr.MetaKeyMARK, 0)...))
	answers := append(t.sourceIn(t.vips), &expr.Notrack{})
	switch l {
	case untracked:
		t.base(c, "untrack", nft.ChainHookPrerouting, beforeTracking, slices.Concat(toVIP, []expr.Any{&expr.Notrack{}}))
		t.base(c, "untrack_answers", nft.ChainHookOutput, beforeTracking, answers)
	case tracked:
		t.natChain(c, "keep", -100)
		t.countSessions(c) // An empty NAT chain alone does not turn connection tracking on.
	case closing, yielding:
		// Connections that go on get the VIP as their NAT destination, before another dataplane gives them an endpoint.
		stay := slices.Concat(toVIP, rules.Opening(), []expr.Any{rules.Return()})
		t.fill(c, t.natChain(c, "stay", -101), stay, slices.Concat(rules.Protocol(unix.IPPROTO_TCP), toVIP, []expr.Any{
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(t.family), RegAddrMin: 1}}))
		// If an answer were tracked, the next datagram of the flow would be delivered to Envoy.
		t.base(c, "untrack_answers", nft.ChainHookOutput, beforeTracking, append(rules.Protocol(unix.IPPROTO_UDP), answers...))
	}
}

// countSessions adds the rule that counts flows to endpoints of UDP frontends. The rule turns on connection tracking for all that this host sends, so it
// is not added before there is such a frontend. It stays as long as the table.
func (t *familyTable) countSessions(c *nft.Conn) {
	if t.counts {
		return
	}
	t.counts = true
	t.base(c, "count", nft.ChainHookOutput, 0, slices.Concat(isNew(), rules.Protocol(unix.IPPROTO_UDP), t.key(), []expr.Any{rules.In(t.sessions.Name, 0)}))
}

func (t *familyTable) natChain(c *nft.Conn, name string, priority nft.ChainPriority) *nft.Chain {
	policy := nft.ChainPolicyAccept
	return c.AddChain(&nft.Chain{Table: t.table, Name: name, Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPrerouting, Priority: &priority, Policy: &policy})
}

// deliverAnswers adds the rules that deliver answers of endpoints to clients of transparent frontends to Envoy. They look up a socket
// for every packet that is not for a VIP, so they are not added before there is such a frontend. They stay as long as the table.
func (t *familyTable) deliverAnswers(c *nft.Conn) {
	if t.answers {
		return
	}
	t.answers = true
	t.fill(c, t.chain(chainTake),
		slices.Concat(rules.Protocol(unix.IPPROTO_TCP), rules.Socket(expr.SocketKeyTransparent, 1), rules.Socket(expr.SocketKeyWildcard, 0), deliver()),
		slices.Concat(rules.Protocol(unix.IPPROTO_UDP), t.sourceKey(), []expr.Any{rules.In(t.endpoints.Name, 0)}, rules.Socket(expr.SocketKeyTransparent, 1), deliver()))
}

// refuseNew refuses all flows except connections that Envoy has.
func (g *ruleset) refuseNew() error {
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

// flowsAreRewritten reports whether this host has NAT chains, and so may have connections that need them.
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

func (t *familyTable) chain(name string) *nft.Chain { return &nft.Chain{Table: t.table, Name: name} }

func (t *familyTable) fill(c *nft.Conn, chain *nft.Chain, all ...[]expr.Any) {
	for _, r := range all {
		c.AddRule(&nft.Rule{Table: t.table, Chain: chain, Exprs: r})
	}
}

func (t *familyTable) base(c *nft.Conn, name string, hook *nft.ChainHook, priority nft.ChainPriority, rule []expr.Any) {
	policy := nft.ChainPolicyAccept
	t.fill(c, c.AddChain(&nft.Chain{Table: t.table, Name: name, Type: nft.ChainTypeFilter, Hooknum: hook, Priority: &priority, Policy: &policy}), rule)
}

// deliver marks the packet, so that it is delivered to this host.
func deliver() []expr.Any {
	return append(rules.SetMeta(expr.MetaKeyMARK, envoyMark), rules.Accept())
}

// isNew matches the first packet of a flow.
func isNew() []expr.Any { return rules.CtHas(expr.CtKeySTATE, expr.CtStateBitNEW) }

// key loads destination, protocol and port.
func (f familyConfig) key() []expr.Any { return rules.Destination(f.destination, f.size, 0) }

// sourceKey loads source, protocol and source port.
func (f familyConfig) sourceKey() []expr.Any { return rules.Source(f.source, f.size, 0) }

// destinationIn and sourceIn match packets to, and from, an address in the set.
func (f familyConfig) destinationIn(set *nft.Set) []expr.Any {
	return []expr.Any{rules.Network(f.destination, f.size, 0), rules.In(set.Name, 0)}
}

func (f familyConfig) sourceIn(set *nft.Set) []expr.Any {
	return []expr.Any{rules.Network(f.source, f.size, 0), rules.In(set.Name, 0)}
}
