package broken

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// The hooks of rules that break packets, with priorities.
const (
	hookArriving  = "filter hook prerouting priority -450" // before fragments are reassembled
	hookAssembled = "filter hook prerouting priority -150" // behind connection tracking
	hookPassing   = "filter hook forward priority 10"
	hookOwn       = "filter hook output priority 10"
	hookLeaving   = "filter hook postrouting priority 300" // behind all translation
)

// inSizes returns faults with small and large packets, ICMP errors, and flows that are silent for a time.
func inSizes() []Mutation {
	var all []Mutation
	add := func(caughtBy, hook, name string, rules ...string) {
		all = append(all, Mutation{Name: name, CaughtBy: []string{caughtBy}, host: func() error { return chain(hook, strings.Join(rules, "; ")) }})
	}
	datagramFaults(add)
	pingFaults(add)
	pathFaults(add)
	errorFaults(add)
	strayFaults(add)
	all = append(all, errorCopies(), errorsBlockTheirSenders())
	return append(all, silenceFaults()...)
}

// adder adds a mutation that consists of rules.
type adder func(caughtBy, hook, name string, rules ...string)

func datagramFaults(add adder) {
	add("udp-fragments", hookPassing, "drops-empty-datagrams", "udp length 8 drop")
	add("udp-fragments", hookPassing, "drops-empty-answers", "iifname back udp length 8 drop")
	add("udp-fragments", hookPassing, "drops-the-largest-datagrams", "udp length > 65000 drop")
	add("udp-fragments", hookPassing, "drops-the-largest-answers", "iifname back udp length > 65000 drop")
	add("udp-fragments", hookPassing, "has-the-limit-of-ipv4-for-ipv6", "udp length > 65515 drop")
	add("udp-fragments", hookPassing, "drops-full-packets", "meta l4proto udp meta length 1500 drop")
	add("udp-fragments", hookPassing, "drops-large-datagrams-of-transparent-flows", "ct status & (snat | dnat) == dnat udp length > 8000 drop")
}

func pingFaults(add adder) {
	add("icmp-echo", hookArriving, "drops-fragmented-pings", "ip protocol icmp ip frag-off & 0x3fff != 0 drop", "frag nexthdr 58 drop")
	add("icmp-echo", hookAssembled, "drops-the-largest-pings", "icmp type echo-request meta length > 60000 drop", "icmpv6 type echo-request meta length > 60000 drop")
	add("icmp-echo", hookAssembled, "drops-empty-pings", "icmp type echo-request meta length 28 drop", "icmpv6 type echo-request meta length 48 drop")
	add("icmp-echo", hookOwn, "answers-pings-with-another-number", "icmp type echo-reply icmp sequence set 7", "icmpv6 type echo-reply icmpv6 sequence set 7")
}

// Matches for errors that say that a packet is too big, by the protocol number of the packet that they quote.
const (
	tooBig4, tooBig6 = "icmp type destination-unreachable icmp code frag-needed ", "icmpv6 type packet-too-big "
	about4, about6   = "@th,136,8 %d ", "@th,112,8 %d "
)

// quotedProtocols are the protocols of packets that errors quote.
var quotedProtocols = []struct {
	name     string
	protocol int
}{{"datagrams", 17}, {"segments", 6}}

func pathFaults(add adder) {
	both := func(before, after string) []string {
		return []string{before + tooBig4 + after, before + tooBig6 + after}
	}
	add("path-mtu", hookOwn, "never-says-that-a-packet-is-too-big", both("", "drop")...)
	add("path-mtu", hookArriving, "drops-packet-too-big-of-nodes-side", both("iifname back ", "drop")...)
	add("path-mtu", hookPassing, "drops-packet-too-big-about-transparent-flows", both("ct status & (snat | dnat) == dnat ", "drop")...)
	add("path-mtu", hookPassing, "drops-packet-too-big-about-direct-flows", both("ct mark & 0xff000000 == 0x6c000000 ", "drop")...)
	for _, q := range quotedProtocols {
		add("path-mtu", hookArriving, "drops-packet-too-big-about-"+q.name, tooBig4+fmt.Sprintf(about4, q.protocol)+"drop", tooBig6+fmt.Sprintf(about6, q.protocol)+"drop")
	}
	add("path-mtu", hookArriving, "drops-packet-too-big-about-fragments-of-ipv6", tooBig6+fmt.Sprintf(about6, 44)+"drop")
	add("path-mtu", hookLeaving, "reports-a-smaller-mtu", "oifname front "+tooBig4+"icmp mtu set 1200", "oifname front "+tooBig6+"icmpv6 mtu set 1280")
}

// anyError4 and anyError6 match the errors that hosts and routers send.
const (
	anyError4 = "icmp type { destination-unreachable, time-exceeded, parameter-problem } "
	anyError6 = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } "
)

func errorFaults(add adder) {
	for _, kind := range []struct{ name, match4, match6 string }{
		{"net-unreachable", "icmp type destination-unreachable icmp code 0", "icmpv6 type destination-unreachable icmpv6 code 0"},
		{"host-unreachable", "icmp type destination-unreachable icmp code 1", "icmpv6 type destination-unreachable icmpv6 code 3"},
		{"protocol-unreachable", "icmp type destination-unreachable icmp code 2", "icmpv6 type parameter-problem icmpv6 code 1"},
		{"port-unreachable", "icmp type destination-unreachable icmp code 3", "icmpv6 type destination-unreachable icmpv6 code 4"},
		{"prohibited", "icmp type destination-unreachable icmp code { 9, 10, 13 }", "icmpv6 type destination-unreachable icmpv6 code { 1, 5, 6 }"},
		{"time-exceeded", "icmp type time-exceeded icmp code 0", "icmpv6 type time-exceeded icmpv6 code 0"},
		{"reassembly-exceeded", "icmp type time-exceeded icmp code 1", "icmpv6 type time-exceeded icmpv6 code 1"},
		{"parameter-problem", "icmp type parameter-problem icmp code 0", "icmpv6 type parameter-problem icmpv6 code 0"},
	} {
		add("icmp-errors", hookPassing, "drops-"+kind.name, kind.match4+" drop", kind.match6+" drop")
	}
	both := func(before, after4, after6 string) []string {
		return []string{before + anyError4 + after4, before + anyError6 + after6}
	}
	add("icmp-errors", hookArriving, "drops-errors-of-clients-side", both("iifname front ", "drop", "drop")...)
	add("icmp-errors", hookArriving, "drops-errors-of-nodes-side", both("iifname back ", "drop", "drop")...)
	add("icmp-errors", hookArriving, "drops-errors-of-routers-behind-it", "ip saddr 198.51.100.253 "+anyError4+"drop", "ip6 saddr 2001:db8:1::fd "+anyError6+"drop")
	add("icmp-errors", hookArriving, "drops-errors-of-routers-before-it", "ip saddr 192.0.2.254 "+anyError4+"drop", "ip6 saddr 2001:db8:c::fe "+anyError6+"drop")
	for _, q := range quotedProtocols {
		add("icmp-errors", hookPassing, "drops-errors-about-"+q.name, both("", fmt.Sprintf(about4, q.protocol)+"drop", fmt.Sprintf(about6, q.protocol)+"drop")...)
	}
	add("icmp-errors", hookArriving, "drops-errors-about-fragments", both("", "@th,112,16 & 0x2000 == 0x2000 drop", fmt.Sprintf(about6, 44)+"drop")...)
	add("icmp-errors", hookArriving, "drops-errors-that-quote-little", both("", "meta length < 60 drop", "meta length < 110 drop")...)
	add("icmp-errors", hookArriving, "drops-errors-that-quote-much", both("", "meta length > 500 drop", "meta length > 500 drop")...)
	add("icmp-errors", hookPassing, "drops-errors-with-extensions", "icmp type time-exceeded @th,32,32 != 0 drop", "icmpv6 type time-exceeded @th,32,32 != 0 drop")
	add("icmp-errors", hookPassing, "drops-errors-about-unanswered-packets", both("iifname back ct status & seen-reply == 0 ", "drop", "drop")...)
	add("icmp-errors", hookPassing, "drops-errors-about-transparent-flows", both("ct status & (snat | dnat) == dnat ", "drop", "drop")...)
	add("icmp-errors", hookLeaving, "changes-the-code-of-errors", "icmp type destination-unreachable icmp code 9 icmp code set 10", "icmpv6 type destination-unreachable icmpv6 code 5 icmpv6 code set 6")
	add("icmp-errors", hookLeaving, "changes-the-mtu-of-errors", tooBig4+"icmp mtu set 1399", tooBig6+"icmpv6 mtu set 1399")
	add("icmp-errors", hookLeaving, "sends-errors-with-a-wrong-checksum", "icmp type time-exceeded icmp checksum set 0xdead", "icmpv6 type time-exceeded icmpv6 checksum set 0xdead")
	add("icmp-errors", hookLeaving, "shows-clients-the-address-of-a-node", "oifname front icmp type time-exceeded ip saddr set 198.51.100.10", "oifname front icmpv6 type time-exceeded ip6 saddr set 2001:db8:1::a")
	add("icmp-errors", hookLeaving, "quotes-the-address-of-a-node", "oifname front icmp type time-exceeded @th,192,32 set 0xc633640a", "oifname front icmpv6 type time-exceeded @th,256,128 set 0x20010db800010000000000000000000a")
	add("icmp-errors", hookLeaving, "quotes-a-port-of-the-gateway", "oifname front icmp type time-exceeded @th,224,16 set 1024", "oifname front icmpv6 type time-exceeded @th,384,16 set 1024")
	add("icmp-errors", hookLeaving, "quotes-the-port-of-a-node", "oifname front icmp type time-exceeded @th,240,16 set 30080", "oifname front icmpv6 type time-exceeded @th,400,16 set 30080")
}

func strayFaults(add adder) {
	add("icmp-strays", hookAssembled, "forwards-errors-about-unknown-flows",
		"iifname front ct state invalid icmp type destination-unreachable ip daddr set 198.51.100.10", "iifname front ct state invalid icmpv6 type destination-unreachable ip6 daddr set 2001:db8:1::a")
	add("icmp-strays", hookAssembled, "forwards-errors-of-nodes-about-unknown-flows",
		"iifname back ct state invalid icmp type destination-unreachable ip daddr set 192.0.2.100", "iifname back ct state invalid icmpv6 type destination-unreachable ip6 daddr set 2001:db8:c::100")
	add("icmp-strays", hookArriving, "forwards-redirects", "iifname front icmp type redirect ip daddr set 198.51.100.10 notrack")
}

// errorCopies sends each error to another node as well.
func errorCopies() Mutation {
	return Mutation{Name: "sends-errors-to-another-node-as-well", CaughtBy: []string{"icmp-errors"}, applied: func(*memory) error {
		return nft(`add table ip copies; delete table ip copies; add table ip6 copies; delete table ip6 copies
			add table ip copies; add chain ip copies in { type filter hook prerouting priority -450; }
			add rule ip copies in iifname front icmp type destination-unreachable dup to 198.51.100.13 device back
			add table ip6 copies; add chain ip6 copies in { type filter hook prerouting priority -450; }
			add rule ip6 copies in iifname front icmpv6 type destination-unreachable dup to 2001:db8:1::d device back`)
	}}
}

// errorsBlockTheirSenders drops all packets of a host that has sent an error, as a dataplane does that ends flows because of errors.
func errorsBlockTheirSenders() Mutation {
	return Mutation{Name: "ends-flows-because-of-errors", CaughtBy: []string{"icmp-strays"}, host: func() error {
		return nft(`add table inet fault
			add set inet fault senders4 { type ipv4_addr; flags dynamic; size 64; }
			add set inet fault senders6 { type ipv6_addr; flags dynamic; size 64; }
			add chain inet fault in { type filter hook prerouting priority -450; }
			add rule inet fault in ip saddr @senders4 drop
			add rule inet fault in ip6 saddr @senders6 drop
			add rule inet fault in icmp type destination-unreachable add @senders4 { ip saddr }
			add rule inet fault in icmpv6 type destination-unreachable add @senders6 { ip6 saddr }`)
	}}
}

// silenceFaults are timeouts of connection tracking that are too short.
func silenceFaults() []Mutation {
	timeouts := func(name string, sysctls ...string) Mutation {
		return Mutation{Name: name, CaughtBy: []string{"silence"}, applied: func(*memory) error {
			for _, s := range append([]string{"nf_flowtable_tcp_timeout=1"}, sysctls...) {
				key, value, _ := strings.Cut(s, "=")
				err := os.WriteFile("/proc/sys/net/netfilter/"+key, []byte(value), 0o644)
				if err != nil && !(errors.Is(err, os.ErrNotExist) && strings.HasPrefix(key, "nf_flowtable")) { // a kernel may have no flowtables
					return err
				}
			}
			return nil
		}}
	}
	return []Mutation{
		timeouts("forgets-silent-connections", "nf_conntrack_tcp_timeout_established=8"),
		timeouts("forgets-silent-half-closed-connections", "nf_conntrack_tcp_timeout_close_wait=8", "nf_conntrack_tcp_timeout_fin_wait=8"),
		timeouts("forgets-silent-datagrams", "nf_conntrack_udp_timeout=8", "nf_conntrack_udp_timeout_stream=8"),
		timeouts("forgets-silent-direct-connections", "nf_conntrack_tcp_timeout_unacknowledged=8", "nf_conntrack_tcp_timeout_max_retrans=8"),
	}
}
