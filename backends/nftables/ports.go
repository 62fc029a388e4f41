package nftables

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// portRange is a range of ports, both ends in it. Its zero value leaves the choice to the kernel.
type portRange struct{ first, last uint16 }

// setPorts has the table masquerade at its ports.
//
// It writes the rule by itself: google/nftables v0.3.0 sends a range without the flag that makes the kernel heed it.
func (t *table) setPorts() error {
	var rules [][]netlink.Attribute
	for _, protocol := range masqueraded() {
		rule, err := t.portsRule(protocol)
		if err != nil {
			return err
		}
		rules = append(rules, rule)
	}
	return t.replaceRules(chainMasquerade, rules)
}

// masqueraded are the protocols; nft wants each port range to stand behind one.
func masqueraded() []statement {
	return []statement{isProtocol("tcp", unix.IPPROTO_TCP), isProtocol("udp", unix.IPPROTO_UDP)}
}

// portsRule is the list of the expressions of a protocol's rule.
func (t *table) portsRule(protocol statement) ([]netlink.Attribute, error) {
	exprs := slices.Concat(protocol.exprs, clearCtMark().exprs)
	var attributes []netlink.Attribute
	if ports := t.layout.ports; ports != (portRange{}) {
		const first, last = 1, 2 // registers
		exprs = append(exprs,
			&expr.Immediate{Register: first, Data: binary.BigEndian.AppendUint16(nil, ports.first)},
			&expr.Immediate{Register: last, Data: binary.BigEndian.AppendUint16(nil, ports.last)})
		attributes = []netlink.Attribute{{Type: unix.NFTA_MASQ_FLAGS, Data: number(unix.NF_NAT_RANGE_PROTO_SPECIFIED)},
			{Type: unix.NFTA_MASQ_REG_PROTO_MIN, Data: number(first)}, {Type: unix.NFTA_MASQ_REG_PROTO_MAX, Data: number(last)}}
	}
	list, err := t.marshal(exprs)
	if err != nil {
		return nil, err
	}
	masquerade, err := expression("masq", attributes)
	return append(list, masquerade), err
}
