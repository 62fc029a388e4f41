package nftables

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// portRange is a range of ports, both ends in it. Its zero value leaves the choice to the kernel.
type portRange struct{ first, last uint16 }

// netlinkPatience is how long the kernel may take for the rules.
const netlinkPatience = 10 * time.Second

// setPorts has the table masquerade at its ports.
//
// It writes the rule by itself: google/nftables v0.3.0 sends a range without the flag that makes the kernel heed it.
func (t *table) setPorts() error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("connect to netfilter: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(netlinkPatience)); err != nil {
		return fmt.Errorf("connect to netfilter: %w", err)
	}
	messages, err := t.portsMessages()
	if err != nil {
		return err
	}
	if _, err := c.SendMessages(messages); err != nil {
		return fmt.Errorf("set the source ports of table %s %s: %w", t.layout.name, t.nft.Name, err)
	}
	for _, m := range messages {
		if m.Header.Flags&netlink.Acknowledge == 0 {
			continue
		}
		if _, err := c.Receive(); err != nil {
			return fmt.Errorf("set the source ports of table %s %s: %w", t.layout.name, t.nft.Name, err)
		}
	}
	return nil
}

// message is one to nf_tables (linux/netfilter/nfnetlink.h).
type message struct {
	kind       netlink.HeaderType
	flags      netlink.HeaderFlags
	family     byte
	resource   uint16
	attributes []netlink.Attribute
}

// portsMessages replace the rules of the chain.
func (t *table) portsMessages() ([]netlink.Message, error) {
	const ours, request = unix.NFNL_SUBSYS_NFTABLES << 8, netlink.Request | netlink.Acknowledge
	chain := []netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(t.nft.Name + "\x00")}, {Type: unix.NFTA_RULE_CHAIN, Data: []byte(chainMasquerade + "\x00")}}
	family := byte(t.nft.Family)
	messages := []message{{unix.NFNL_MSG_BATCH_BEGIN, netlink.Request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil}, {ours | unix.NFT_MSG_DELRULE, request, family, 0, chain}}
	for _, protocol := range masqueraded() {
		rule, err := t.portsRule(protocol)
		if err != nil {
			return nil, err
		}
		messages = append(messages, message{ours | unix.NFT_MSG_NEWRULE, request | netlink.Create | netlink.Append, family, 0,
			append(slices.Clone(chain), netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: rule})})
	}
	messages = append(messages, message{unix.NFNL_MSG_BATCH_END, netlink.Request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil})
	var out []netlink.Message
	for _, m := range messages {
		body, err := netlink.MarshalAttributes(m.attributes)
		if err != nil {
			return nil, err
		}
		// struct nfgenmsg.
		header := binary.BigEndian.AppendUint16([]byte{m.family, unix.NFNETLINK_V0}, m.resource)
		out = append(out, netlink.Message{Header: netlink.Header{Type: m.kind, Flags: m.flags}, Data: append(header, body...)})
	}
	return out, nil
}

// masqueraded are the protocols; nft wants each port range to stand behind one.
func masqueraded() []statement {
	return []statement{isProtocol("tcp", unix.IPPROTO_TCP), isProtocol("udp", unix.IPPROTO_UDP)}
}

// portsRule is the list of the expressions of a protocol's rule.
func (t *table) portsRule(protocol statement) ([]byte, error) {
	exprs := slices.Concat(protocol.exprs, clearCtMark().exprs)
	var attributes []netlink.Attribute
	if ports := t.layout.ports; ports != (portRange{}) {
		const first, last = 1, 2 // registers
		number := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
		exprs = append(exprs,
			&expr.Immediate{Register: first, Data: binary.BigEndian.AppendUint16(nil, ports.first)},
			&expr.Immediate{Register: last, Data: binary.BigEndian.AppendUint16(nil, ports.last)})
		attributes = []netlink.Attribute{{Type: unix.NFTA_MASQ_FLAGS, Data: number(unix.NF_NAT_RANGE_PROTO_SPECIFIED)},
			{Type: unix.NFTA_MASQ_REG_PROTO_MIN, Data: number(first)}, {Type: unix.NFTA_MASQ_REG_PROTO_MAX, Data: number(last)}}
	}
	var list []netlink.Attribute
	for _, e := range exprs {
		data, err := expr.Marshal(byte(t.nft.Family), e)
		if err != nil {
			return nil, err
		}
		list = append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data})
	}
	masquerade, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return nil, err
	}
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte("masq\x00")}, {Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: masquerade}})
	if err != nil {
		return nil, err
	}
	return netlink.MarshalAttributes(append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data}))
}
