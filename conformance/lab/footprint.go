package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Footprint returns, as lines, all network state of a host in which a dataplane might leave something.
func (h *Host) Footprint() ([]string, error) {
	var lines []string
	err := h.Do(func() error {
		rules, err := nft("list", "ruleset")
		if err != nil {
			return err
		}
		for line := range strings.Lines(counters.ReplaceAllString(rules, "")) {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			found, err := footprintOf(link)
			if err != nil {
				return err
			}
			lines = append(lines, found...)
		}
		found, err := routing()
		lines = append(lines, found...)
		return err
	})
	return lines, err
}

// counters matches packet counters, which change all the time.
var counters = regexp.MustCompile(`packets \d+ bytes \d+`)

func footprintOf(link netlink.Link) ([]string, error) {
	attributes := link.Attrs()
	lines := []string{fmt.Sprintf("link %s mtu %d promiscuous %d xdp %v", attributes.Name, attributes.MTU, attributes.Promisc, attributes.Xdp != nil && attributes.Xdp.Attached)}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		lines = append(lines, fmt.Sprintf("address %s on %s", a.IPNet, attributes.Name))
	}
	qdiscs, err := netlink.QdiscList(link)
	if err != nil {
		return nil, err
	}
	for _, q := range qdiscs {
		lines = append(lines, fmt.Sprintf("qdisc %s on %s", q.Type(), attributes.Name))
	}
	return lines, nil
}

// routing returns the rules, and the routes of all tables.
func routing() ([]string, error) {
	var lines []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			lines = append(lines, "rule "+r.String())
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: 0}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		var texts []string
		for _, r := range routes {
			texts = append(texts, fmt.Sprintf("route %v via %v table %d type %d", r.Dst, r.Gw, r.Table, r.Type))
		}
		slices.Sort(texts)
		lines = append(lines, texts...)
	}
	return lines, nil
}

// AddForeignRules adds nftables rules of another program. They count packets with a mark, in every hook that a forwarded
// packet passes. ICMPv6 is left out, because the kernel's multicast listener reports have a mark.
func (h *Host) AddForeignRules() error {
	return h.Do(func() error {
		script := "add table inet foreign\n"
		for hook, priority := range map[string]int{"prerouting": -50, "forward": 0, "postrouting": 200} {
			script += fmt.Sprintf("add chain inet foreign %[1]s { type filter hook %[1]s priority %[2]d; }\nadd rule inet foreign %[1]s meta l4proto != ipv6-icmp meta mark != 0 counter\n", hook, priority)
		}
		_, err := nft(script)
		return err
	})
}

// DropIncoming makes the host drop all incoming packets, or accept them again.
func (h *Host) DropIncoming(drop bool) error {
	script := "delete table inet mute"
	if drop {
		script = "add table inet mute; add chain inet mute in { type filter hook prerouting priority -400; policy drop; }"
	}
	return h.Do(func() error {
		_, err := nft(script)
		return err
	})
}

// ServeVIPOnNodes makes every node deliver packets for the VIP to the target port of its first address, as kube-proxy does for a
// Service with the VIP.
func (l *Lab) ServeVIPOnNodes(vip netip.AddrPort, target uint16) error {
	for i, n := range l.Nodes {
		v4 := vip.Addr().Is4()
		family := map[bool]string{true: "ip", false: "ip6"}[v4]
		to := netip.AddrPortFrom(EndpointAddress(v4, i), target)
		script := "add table " + family + " kubeproxy; add chain " + family + " kubeproxy services { type nat hook prerouting priority dstnat; };"
		for _, protocol := range []string{"tcp", "udp"} {
			script += fmt.Sprintf("add rule %s kubeproxy services %s daddr %s %s dport %d dnat to %s;", family, family, vip.Addr(), protocol, vip.Port(), to)
		}
		err := n.Do(func() error {
			_, err := nft(script)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

var counted = regexp.MustCompile(`mark != 0x00000000 counter packets (\d+)`)

// MarkedPackets returns how many packets with a mark the foreign rules counted.
func (h *Host) MarkedPackets() (int, error) {
	total := 0
	err := h.Do(func() error {
		text, err := nft("list", "table", "inet", "foreign")
		if err != nil {
			return err
		}
		found := counted.FindAllStringSubmatch(text, -1)
		if len(found) == 0 {
			return errors.New("the rules of table inet foreign are gone")
		}
		for _, match := range found {
			n, err := strconv.Atoi(match[1])
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	})
	return total, err
}

func nft(arguments ...string) (string, error) {
	output, err := exec.Command("nft", arguments...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("nft: %w: %s", err, output)
	}
	return string(output), nil
}
