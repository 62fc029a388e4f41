package probe

import (
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// need is a module that rules need, with a batch whose last message shows whether the kernel has it.
type need struct {
	// option is the kernel option that builds the module, without CONFIG_.
	module, option string
	trial          []netlink.Message
}

// needsOf returns the modules that the messages of a transaction need, each once.
func needsOf(messages []netlink.Message) (needs []need) {
	add := func(n need) {
		if n.module != "" && !slices.ContainsFunc(needs, func(other need) bool { return other.module == n.module }) {
			needs = append(needs, n)
		}
	}
	for _, m := range messages {
		family, content := m.Data[0], m.Data[headerLength:]
		switch kindOf(m) {
		case unix.NFT_MSG_NEWCHAIN:
			if text(attribute(content, unix.NFTA_CHAIN_TYPE)) == "nat" {
				add(need{"nft_chain_nat", "NFT_NAT", []netlink.Message{newTable(family), inTrialTable(m, unix.NFTA_CHAIN_TABLE)}})
			}
		case unix.NFT_MSG_NEWOBJ:
			// Counters are in nf_tables itself since Linux 5.17, counter objects since 6.2.
			add(need{"nft_counter", "NFT_COUNTER", []netlink.Message{newTable(family), inTrialTable(m, unix.NFTA_OBJ_TABLE)}})
		case unix.NFT_MSG_NEWRULE:
			for _, e := range expressionsOf(content) {
				name := text(attribute(e, unix.NFTA_EXPR_NAME))
				module, option := moduleOf(name, family)
				trial := []netlink.Message{newTable(family)}
				if name == "flow_offload" {
					// Without its flowtable the kernel refuses it with the error for unknown expressions.
					trial = append(trial, flowtablesOf(messages, family)...)
				}
				add(need{module, option, append(trial, newChain(family), newRule(family, e))})
			}
		}
	}
	return needs
}

// flowtablesOf returns messages that add the flowtables of the family to the trial's table.
func flowtablesOf(messages []netlink.Message, family byte) (out []netlink.Message) {
	for _, m := range messages {
		if kindOf(m) == unix.NFT_MSG_NEWFLOWTABLE && m.Data[0] == family {
			out = append(out, inTrialTable(m, flowtableTable))
		}
	}
	return out
}

// flowtableTable is NFTA_FLOWTABLE_TABLE of linux/netfilter/nf_tables.h.
const flowtableTable = 1

// moduleOf returns the module with an expression, and the option that builds it. They are empty for expressions in nf_tables itself.
func moduleOf(expression string, family byte) (module, option string) {
	switch expression {
	case "ct", "notrack":
		module = "nft_ct"
	case "nat", "masq", "redir", "hash", "limit", "connlimit", "socket", "tproxy", "numgen", "quota", "queue", "flow_offload", "synproxy", "osf":
		module = "nft_" + expression
	case "reject", "dup", "fib":
		// These have a module for each family.
		module = "nft_" + expression + map[byte]string{unix.NFPROTO_IPV4: "_ipv4", unix.NFPROTO_IPV6: "_ipv6", unix.NFPROTO_INET: "_inet", unix.NFPROTO_NETDEV: "_netdev"}[family]
	case "fwd":
		module = "nft_fwd_netdev"
	}
	return module, strings.ToUpper(module)
}

// headerLength is the length of struct nfgenmsg: the family, a version, and two bytes for a resource.
const headerLength = 4

// typeMask is NLA_TYPE_MASK: it removes the flags from an attribute's type.
const typeMask = 0x3fff

// kindOf returns the kind of nftables message, such as NFT_MSG_NEWRULE.
func kindOf(m netlink.Message) int { return int(m.Header.Type) & 0xff }

// attribute returns the content of one of the attributes, nil if there is none.
func attribute(content []byte, kind uint16) []byte {
	for _, a := range attributes(content) {
		if a.Type&typeMask == kind {
			return a.Data
		}
	}
	return nil
}

// attributes parses attributes. Malformed ones are ignored, since this program has encoded them.
func attributes(content []byte) []netlink.Attribute {
	all, err := netlink.UnmarshalAttributes(content)
	if err != nil {
		return nil
	}
	return all
}

func text(data []byte) string { return strings.TrimRight(string(data), "\x00") }

// expressionsOf returns the expressions of a rule, and the expressions inside of them.
func expressionsOf(content []byte) (out [][]byte) {
	for _, e := range attributes(attribute(content, unix.NFTA_RULE_EXPRESSIONS)) {
		out = append(out, e.Data)
		if text(attribute(e.Data, unix.NFTA_EXPR_NAME)) == "dynset" {
			if inner := attribute(attribute(e.Data, unix.NFTA_EXPR_DATA), unix.NFTA_DYNSET_EXPR); inner != nil {
				out = append(out, inner)
			}
		}
	}
	return out
}

// Names in a trial, which is never committed.
const trialTable, trialChain = "kubelb-preflight", "trial"

func message(kind int, family byte, content ...netlink.Attribute) netlink.Message {
	encoded, err := netlink.MarshalAttributes(content)
	if err != nil {
		return netlink.Message{} // the kernel refuses it
	}
	return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | netlink.Create},
		Data: append([]byte{family, 0, 0, 0}, encoded...)}
}

func named(kind uint16, name string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: []byte(name + "\x00")}
}

func newTable(family byte) netlink.Message {
	return message(unix.NFT_MSG_NEWTABLE, family, named(unix.NFTA_TABLE_NAME, trialTable))
}

func newChain(family byte) netlink.Message {
	return message(unix.NFT_MSG_NEWCHAIN, family, named(unix.NFTA_CHAIN_TABLE, trialTable), named(unix.NFTA_CHAIN_NAME, trialChain))
}

// newRule returns a rule with one expression only. Other reasons to refuse it are ignored.
func newRule(family byte, expression []byte) netlink.Message {
	list, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: expression}})
	if err != nil {
		return netlink.Message{}
	}
	m := message(unix.NFT_MSG_NEWRULE, family, named(unix.NFTA_RULE_TABLE, trialTable), named(unix.NFTA_RULE_CHAIN, trialChain),
		netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: list})
	m.Header.Flags |= netlink.Append
	return m
}

// inTrialTable returns the message with the name of the trial's table instead of its own.
func inTrialTable(m netlink.Message, kind uint16) netlink.Message {
	content := attributes(m.Data[headerLength:])
	for i := range content {
		if content[i].Type&typeMask == kind {
			content[i] = named(kind, trialTable)
		}
	}
	return message(kindOf(m), m.Data[0], content...)
}
