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

// netlinkTimeout is the deadline for requests about rules.
const netlinkTimeout = 10 * time.Second

// message is a message to nf_tables (linux/netfilter/nfnetlink.h).
type message struct {
	kind       netlink.HeaderType
	flags      netlink.HeaderFlags
	family     byte
	resource   uint16
	attributes []netlink.Attribute
}

// replaceRules replaces all rules of the chain in one transaction. Each rule is a list of expressions, as marshal returns it. It is for rules that
// google/nftables v0.3.0 cannot write.
func (t *table) replaceRules(chainName string, rules [][]netlink.Attribute) error {
	messages, err := t.ruleMessages(chainName, rules)
	if err != nil {
		return err
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("connect to netfilter: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(netlinkTimeout)); err != nil {
		return fmt.Errorf("connect to netfilter: %w", err)
	}
	if _, err := c.SendMessages(messages); err != nil {
		return fmt.Errorf("send the rules of chain %s of table %s %s: %w", chainName, t.layout.name, t.nft.Name, err)
	}
	for _, m := range messages {
		if m.Header.Flags&netlink.Acknowledge == 0 {
			continue
		}
		if _, err := c.Receive(); err != nil {
			return fmt.Errorf("set the rules of chain %s of table %s %s: %w", chainName, t.layout.name, t.nft.Name, err)
		}
	}
	return nil
}

// countRules returns the number of rules of the chain, 0 if there is no such chain. google/nftables v0.3.0 cannot read the rules that it cannot
// write.
func (t *table) countRules(chainName string) (int, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("connect to netfilter: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(netlinkTimeout)); err != nil {
		return 0, fmt.Errorf("connect to netfilter: %w", err)
	}
	request, err := message{unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, netlink.Request | netlink.Dump, byte(t.nft.Family), 0, t.chainAttributes(chainName)}.marshal()
	if err != nil {
		return 0, err
	}
	rules, err := c.Execute(request)
	if err != nil {
		return 0, fmt.Errorf("list the rules of chain %s of table %s %s: %w", chainName, t.layout.name, t.nft.Name, err)
	}
	return len(rules), nil
}

// chainAttributes returns the first attributes of a rule: its table and chain.
func (t *table) chainAttributes(name string) []netlink.Attribute {
	return []netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(t.nft.Name + "\x00")}, {Type: unix.NFTA_RULE_CHAIN, Data: []byte(name + "\x00")}}
}

func (m message) marshal() (netlink.Message, error) {
	body, err := netlink.MarshalAttributes(m.attributes)
	// struct nfgenmsg.
	header := binary.BigEndian.AppendUint16([]byte{m.family, unix.NFNETLINK_V0}, m.resource)
	return netlink.Message{Header: netlink.Header{Type: m.kind, Flags: m.flags}, Data: append(header, body...)}, err
}

func (t *table) ruleMessages(chainName string, rules [][]netlink.Attribute) ([]netlink.Message, error) {
	const subsystem, request = unix.NFNL_SUBSYS_NFTABLES << 8, netlink.Request | netlink.Acknowledge
	chain := t.chainAttributes(chainName)
	family := byte(t.nft.Family)
	messages := []message{{unix.NFNL_MSG_BATCH_BEGIN, netlink.Request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil}, {subsystem | unix.NFT_MSG_DELRULE, request, family, 0, chain}}
	for _, list := range rules {
		rule, err := netlink.MarshalAttributes(list)
		if err != nil {
			return nil, err
		}
		messages = append(messages, message{subsystem | unix.NFT_MSG_NEWRULE, request | netlink.Create | netlink.Append, family, 0,
			append(slices.Clone(chain), netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: rule})})
	}
	messages = append(messages, message{unix.NFNL_MSG_BATCH_END, netlink.Request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil})
	var out []netlink.Message
	for _, m := range messages {
		marshalled, err := m.marshal()
		if err != nil {
			return nil, err
		}
		out = append(out, marshalled)
	}
	return out, nil
}

// marshal returns a rule's list of expressions.
func (t *table) marshal(exprs []expr.Any) ([]netlink.Attribute, error) {
	var list []netlink.Attribute
	for _, e := range exprs {
		data, err := expr.Marshal(byte(t.nft.Family), e)
		if err != nil {
			return nil, err
		}
		list = append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data})
	}
	return list, nil
}

// expression returns an element of a rule's list of expressions, from the expression's name in the kernel and its attributes.
func expression(name string, attributes []netlink.Attribute) (netlink.Attribute, error) {
	inner, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return netlink.Attribute{}, err
	}
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte(name + "\x00")}, {Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: inner}})
	return netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data}, err
}

// number returns the value of an attribute.
func number(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
