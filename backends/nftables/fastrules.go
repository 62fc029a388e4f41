package nftables

import (
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/rules"
)

// chainNotes is the chain that marks flows in postrouting.
const chainNotes = "fast_notes"

// fastPriority places the chains behind those of other programs, which may drop or mark the packet (NF_IP_PRI_CONNTRACK_HELPER is 300).
const fastPriority = 300

// fastChains are the chains for the flowtable.
func fastChains() []chain {
	return []chain{
		{name: flowtableName, hook: nft.ChainHookForward, kind: nft.ChainTypeFilter, priority: fastPriority},
		{name: chainNotes, hook: nft.ChainHookPostrouting, kind: nft.ChainTypeFilter, priority: fastPriority},
	}
}

// setFastRules sets the rules of the chains for the flowtable.
func (t *table) setFastRules() error {
	rules, err := t.fastRules()
	if err != nil {
		return err
	}
	for _, chain := range fastChains() {
		if err := t.replaceRules(chain.name, rules[chain.name]); err != nil {
			return err
		}
	}
	return nil
}

// hasFastRules reports whether each of the chains has the right number of rules.
func (t *table) hasFastRules() (bool, error) {
	rules, err := t.fastRules()
	if err != nil {
		return false, err
	}
	for _, chain := range fastChains() {
		if n, err := t.countRules(chain.name); err != nil || n != len(rules[chain.name]) {
			return false, err
		}
	}
	return true, nil
}

// flowRule is a rule for flows to VIPs. Between its two parts it checks that the destination of the flow's first packet is a VIP.
type flowRule struct{ when, then []statement }

// fastRules returns the rules of the chains, by name.
func (t *table) fastRules() (map[string][][]netlink.Attribute, error) {
	rules := map[string][][]netlink.Attribute{}
	for name, chain := range map[string][]flowRule{flowtableName: slices.Concat(keepAsymmetricSlow(), offload()), chainNotes: keepMarkedSlow()} {
		for _, rule := range chain {
			marshalled, err := t.marshalFlowRule(rule)
			if err != nil {
				return nil, err
			}
			rules[name] = append(rules[name], marshalled)
		}
	}
	return rules, nil
}

// keepAsymmetricSlow keeps a flow in the slow path if its answers leave by another interface than the one at which its packets arrive. The flowtable
// would have the answers only, and the entry of connection tracking would expire early.
//
//	ct mark 0x00000000 ct direction original ct state established ct status dnat ct original ip daddr @vips
//		ct original ip daddr != @slow_path fib saddr . iif oif missing ct mark set 0x6b756201
func keepAsymmetricSlow() []flowRule {
	return []flowRule{{[]statement{hasFlowMark(0), isRequest(), ctStateHas("established", expr.CtStateBitESTABLISHED), ctStatusDNAT()},
		[]statement{notSlowPath(), hasReturnRoute(false), setFlowMark(notes | slowBit)}}}
}

// keepMarkedSlow keeps a flow in the slow path if another program marks its packets in one of the directions: a route or a filter may depend on the
// mark. First packets are ignored, since the program may still mark the connection itself.
//
//	meta mark != 0x00000000 ct mark 0x00000000 ct state established ct status dnat ct original ip daddr @vips
//		ct original ip daddr != @slow_path ct mark set 0x6b756201
func keepMarkedSlow() []flowRule {
	return []flowRule{{[]statement{isMarked(true), hasFlowMark(0), ctStateHas("established", expr.CtStateBitESTABLISHED), ctStatusDNAT()},
		[]statement{notSlowPath(), setFlowMark(notes | slowBit)}}}
}

// offload adds a flow to the flowtable when the endpoint answers:
//
//	meta l4proto tcp ct direction reply ct state established ct status dnat ct status assured meta mark 0x00000000 ct mark 0x00000000
//		ct original ip daddr @vips ct original ip daddr != @slow_path iifname @fast_interfaces oifname @fast_interfaces
//		fib saddr . iif oif exists flow add @fast
//
// and the same for UDP. The statements exclude what the fast path would treat differently from the slow path:
//
//   - ICMP errors, which belong to the flow for connection tracking but have no ports;
//   - flows that are not assured, which are flows without an answer and UDP flows younger than two seconds: their entries expire soon, and would
//     be kept four times as long after they were fast;
//   - flows with a mark: flows of direct frontends have a connection mark, and are rewritten outside of connection tracking. A route or a filter
//     of another program may depend on its mark. Notes are marks, too (ends.go);
//   - flows that are not to VIPs, and flows to addresses in setSlowPath;
//   - flows with only one fast direction: connection tracking would see the other one only, and its entry would expire early;
//   - flows whose packets arrive at another interface than the one by which their answers leave: the kernel would send both by the same.
func offload() (rules []flowRule) {
	for _, protocol := range masqueraded() {
		rules = append(rules, flowRule{
			[]statement{protocol, isAnswer(), ctStateHas("established", expr.CtStateBitESTABLISHED), ctStatusDNAT(), ctStatusAssured(), isMarked(false), hasFlowMark(0)},
			[]statement{notSlowPath(), interfaceIn("iifname", expr.MetaKeyIIFNAME), interfaceIn("oifname", expr.MetaKeyOIFNAME), hasReturnRoute(true),
				{"flow add @" + flowtableName, []expr.Any{&expr.FlowOffload{Name: flowtableName}}}}})
	}
	return rules
}

// marshalFlowRule marshals the rule without google/nftables: v0.3.0 loads addresses from connection tracking with a key that makes nft 1.0 abort
// when it lists the rule.
func (t *table) marshalFlowRule(rule flowRule) ([]netlink.Attribute, error) {
	when, err := t.marshal(exprsOf(rule.when))
	if err != nil {
		return nil, err
	}
	address, err := t.originalDestination()
	if err != nil {
		return nil, err
	}
	then, err := t.marshal(append([]expr.Any{rules.In(setVIPs, 0)}, exprsOf(rule.then)...))
	return slices.Concat(when, []netlink.Attribute{address}, then), err
}

// notSlowPath checks the address that the rule has loaded: the destination of the flow's first packet.
func notSlowPath() statement {
	return statement{"!= @" + setSlowPath, []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: setSlowPath, Invert: true}}}
}

func exprsOf(statements []statement) (exprs []expr.Any) {
	for _, s := range statements {
		exprs = append(exprs, s.exprs...)
	}
	return exprs
}

// originalDestination loads the destination of the flow's first packet.
func (t *table) originalDestination() (netlink.Attribute, error) {
	const original = 0 // IP_CT_DIR_ORIGINAL
	key := uint32(unix.NFT_CT_DST_IP6)
	if t.layout.v4 {
		key = unix.NFT_CT_DST_IP
	}
	return expression("ct", []netlink.Attribute{
		{Type: unix.NFTA_CT_KEY, Data: number(key)}, {Type: unix.NFTA_CT_DREG, Data: number(1)}, {Type: unix.NFTA_CT_DIRECTION, Data: []byte{original}}})
}

func isRequest() statement { return ctDirection("original", 0) } // IP_CT_DIR_ORIGINAL
func isAnswer() statement  { return ctDirection("reply", 1) }    // IP_CT_DIR_REPLY

func ctDirection(name string, direction byte) statement {
	return statement{"ct direction " + name, []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{direction}}}}
}

func ctStatusAssured() statement {
	const assured = 0x4 // IPS_ASSURED
	return statement{"ct status assured", rules.CtHas(expr.CtKeySTATUS, assured)}
}

// isMarked matches packets with a mark, or without one.
func isMarked(marked bool) statement {
	text, op := "", expr.CmpOpEq
	if marked {
		text, op = "!= ", expr.CmpOpNeq
	}
	return statement{"meta mark " + text + "0x00000000", []expr.Any{loadMark(0), &expr.Cmp{Op: op, Register: 1, Data: mark(0)}}}
}

func interfaceIn(name string, key expr.MetaKey) statement {
	return statement{name + " @" + setFastInterfaces, []expr.Any{&expr.Meta{Key: key, Register: 1}, rules.In(setFastInterfaces, 0)}}
}

// hasReturnRoute matches packets to whose sender there is a route by the interface at which they arrived, or there is none.
func hasReturnRoute(exists bool) statement {
	text, want := "missing", uint32(0)
	if exists {
		text, want = "exists", 1
	}
	return statement{"fib saddr . iif oif " + text, []expr.Any{
		&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark(want)}}}
}
