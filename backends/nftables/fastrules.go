package nftables

import (
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/rules"
)

// chainNotes notes what only the last hook knows.
const chainNotes = "fast_notes"

// fastPriority puts the chains behind those of others in their hooks, which may drop or mark the packet (NF_IP_PRI_CONNTRACK_HELPER is 300).
const fastPriority = 300

// fastChains stand beside the flowtable.
func fastChains() []chain {
	return []chain{
		{name: flowtableName, hook: nft.ChainHookForward, kind: nft.ChainTypeFilter, priority: fastPriority},
		{name: chainNotes, hook: nft.ChainHookPostrouting, kind: nft.ChainTypeFilter, priority: fastPriority},
	}
}

// setFastRules fills the chains beside the flowtable.
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

// hasFastRules tells whether each of the chains has as many rules as it should.
func (t *table) hasFastRules() (bool, error) {
	rules, err := t.fastRules()
	if err != nil {
		return false, err
	}
	for _, chain := range fastChains() {
		if held, err := t.countRules(chain.name); err != nil || held != len(rules[chain.name]) {
			return false, err
		}
	}
	return true, nil
}

// flowRule is a rule about flows of ours. Between its parts the address that the flow's first packet went to is looked at.
type flowRule struct{ when, then []statement }

// fastRules are the rules of the chains, by their names.
func (t *table) fastRules() (map[string][][]netlink.Attribute, error) {
	rules := map[string][][]netlink.Attribute{}
	for name, chain := range map[string][]flowRule{flowtableName: slices.Concat(noteOtherInterface(), takeFast()), chainNotes: noteMarks()} {
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

// noteOtherInterface has a flow stay slow if its answers leave by another interface than its packets come in at: the flowtable would only
// know the answers, and conntrack forget the connection early.
//
//	ct mark 0x00000000 ct direction original ct state established ct status dnat ct original ip daddr @vips
//		ct original ip daddr != @slow_path fib saddr . iif oif missing ct mark set 0x6b756201
func noteOtherInterface() []flowRule {
	return []flowRule{{[]statement{isFlow(0), isRequest(), ctStateHas("established", expr.CtStateBitESTABLISHED), ctStatusDNAT()},
		[]statement{notSlowPath(), routeGoesBack(false), takeFlow(notes | slowBit)}}}
}

// noteMarks has a flow stay slow that another program marks packets of, in either direction: the mark may stand for a route or a filter.
// First packets do not count, since the program may yet mark the connection itself.
//
//	meta mark != 0x00000000 ct mark 0x00000000 ct state established ct status dnat ct original ip daddr @vips
//		ct original ip daddr != @slow_path ct mark set 0x6b756201
func noteMarks() []flowRule {
	return []flowRule{{[]statement{isMarked(true), isFlow(0), ctStateHas("established", expr.CtStateBitESTABLISHED), ctStatusDNAT()},
		[]statement{notSlowPath(), takeFlow(notes | slowBit)}}}
}

// takeFast puts flows into the flowtable, when they meet an answer of the endpoint:
//
//	meta l4proto tcp ct direction reply ct state established ct status dnat ct status assured meta mark 0x00000000 ct mark 0x00000000
//		ct original ip daddr @vips ct original ip daddr != @slow_path iifname @fast_interfaces oifname @fast_interfaces
//		fib saddr . iif oif exists flow add @fast
//
// and the same for UDP. Each statement keeps out what the fast path would treat unlike the slow path:
//
//   - ICMP errors, which belong to the flow for conntrack but have no ports;
//   - flows that nobody has answered, and UDP flows younger than two seconds, which are not assured: conntrack forgets them soon, and
//     would keep them four times as long after they were fast;
//   - flows with a mark: those of direct frontends have a connection mark, and are rewritten outside of conntrack. A mark of another
//     program may stand for a route or a filter of its own. Notes are marks, too;
//   - flows of others, and of addresses in setSlowPath;
//   - flows with a half that would not be fast: conntrack would see only the other half, and forget the connection early;
//   - flows whose packets take another interface than their answers: the kernel has the fast path send both to where it met the answer.
func takeFast() (rules []flowRule) {
	for _, protocol := range masqueraded() {
		rules = append(rules, flowRule{
			[]statement{protocol, isAnswer(), ctStateHas("established", expr.CtStateBitESTABLISHED), ctStatusDNAT(), ctStatusAssured(), isMarked(false), isFlow(0)},
			[]statement{notSlowPath(), interfaceIn("iifname", expr.MetaKeyIIFNAME), interfaceIn("oifname", expr.MetaKeyOIFNAME), routeGoesBack(true),
				{"flow add @" + flowtableName, []expr.Any{&expr.FlowOffload{Name: flowtableName}}}}})
	}
	return rules
}

// marshalFlowRule writes the rule by itself: google/nftables v0.3.0 has of ct's addresses only a key that makes nft 1.0 abort when it lists
// the rule.
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

// notSlowPath is about the address that the rule has looked at: that of the flow's first packet.
func notSlowPath() statement {
	return statement{"!= @" + setSlowPath, []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: setSlowPath, Invert: true}}}
}

func exprsOf(statements []statement) (exprs []expr.Any) {
	for _, s := range statements {
		exprs = append(exprs, s.exprs...)
	}
	return exprs
}

// originalDestination loads the address that the flow's first packet went to.
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

// comparedWith0 is how what is to be so, or is not to be, is compared with 0.
func comparedWith0(is bool) (text string, op expr.CmpOp) {
	if is {
		return "!= ", expr.CmpOpNeq
	}
	return "", expr.CmpOpEq
}

func isMarked(is bool) statement {
	text, op := comparedWith0(is)
	return statement{"meta mark " + text + "0x00000000", []expr.Any{loadMark(0), &expr.Cmp{Op: op, Register: 1, Data: mark(0)}}}
}

func interfaceIn(name string, key expr.MetaKey) statement {
	return statement{name + " @" + setFastInterfaces, []expr.Any{&expr.Meta{Key: key, Register: 1}, rules.In(setFastInterfaces, 0)}}
}

// routeGoesBack matches where a packet to the sender would leave by the interface that this one came in at, or where none would.
func routeGoesBack(does bool) statement {
	text, want := "missing", uint32(0)
	if does {
		text, want = "exists", 1
	}
	return statement{"fib saddr . iif oif " + text, []expr.Any{
		&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark(want)}}}
}
