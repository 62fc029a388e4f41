package broken

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// inHeaders returns faults in the headers of packets, and packets that are lost. They are made by rules at the interfaces, where a packet
// passes on the slow path and on the fast path, or behind the rules of the backend.
func inHeaders() []Mutation {
	return append(append(inNetworkHeaders(), inTransportHeaders()...), inDelivery()...)
}

// The interfaces of a gateway, from which requests and replies come.
const (
	requests = "front"
	replies  = "back"
	all      = requests + " " + replies
)

// arriving breaks packets from some interfaces.
func arriving(name, from, rules string, caughtBy ...string) Mutation {
	return Mutation{Name: name, CaughtBy: caughtBy, host: func() error {
		var errs []error
		for device := range strings.FieldsSeq(from) {
			text := fmt.Sprintf("add table netdev fault; add chain netdev fault %[1]s { type filter hook ingress device %[1]s priority -500; };", device)
			for rule := range strings.SplitSeq(rules, "; ") {
				text += fmt.Sprintf("add rule netdev fault %s %s;", device, rule)
			}
			errs = append(errs, nftAt(device, text))
		}
		return errors.Join(errs...)
	}}
}

// nftAt applies a script that needs an interface. The host that is only described has none.
func nftAt(device, text string) error {
	if _, err := net.InterfaceByName(device); err != nil {
		return nil
	}
	return nft(text)
}

// leaving breaks packets behind the rules of the backend.
func leaving(name, rules string, caughtBy ...string) Mutation {
	return Mutation{Name: name, CaughtBy: caughtBy, host: func() error { return chain("filter hook postrouting priority 300", rules) }}
}

// of makes a mutation of another backend than the usual one.
func (m Mutation) of(backend string) Mutation {
	m.Breaks, m.Name = backend, m.Name+"-of-a-proxy"
	return m
}

func inNetworkHeaders() []Mutation {
	return []Mutation{
		arriving("rewrites-dscp-of-requests", requests, "ip dscp set cs1; ip6 dscp set cs1", "headers", "headers-transparent", "headers-direct"),
		arriving("rewrites-dscp-of-replies", replies, "ip dscp set cs1; ip6 dscp set cs1", "headers", "headers-transparent"),
		arriving("clears-ecn-of-packets", all, "ip ecn set not-ect; ip6 ecn set not-ect", "headers"),
		arriving("marks-all-as-congested", all, "ip ecn set ce; ip6 ecn set ce", "valid-packets", "headers"),
		arriving("marks-all-as-congested", all, "ip ecn set ce; ip6 ecn set ce", "valid-packets").of("envoy"),
		leaving("keeps-the-ttl", "ip ttl 63 ip ttl set 64; ip6 hoplimit 63 ip6 hoplimit set 64", "headers", "headers-transparent"),
		leaving("counts-two-hops", "ip ttl 63 ip ttl set 62; ip6 hoplimit 63 ip6 hoplimit set 62", "headers", "headers-direct"),
		arriving("begins-the-ttl-again", all, "ip ttl > 1 ip ttl set 64; ip6 nexthdr { tcp, udp } ip6 hoplimit > 1 ip6 hoplimit set 64", "headers"),
		leaving("sends-with-a-low-ttl", "meta l4proto { tcp, udp } ip ttl set 20; meta l4proto { tcp, udp } ip6 hoplimit set 20", "valid-packets", "headers"),
		leaving("sends-with-a-low-ttl", "meta l4proto { tcp, udp } ip ttl set 20; meta l4proto { tcp, udp } ip6 hoplimit set 20", "valid-packets").of("envoy"),
		arriving("forwards-expired-packets", requests, "ip ttl 1 ip ttl set 2; ip6 hoplimit 1 ip6 hoplimit set 2", "headers", "headers-transparent"),
		arriving("drops-ipv4-options", requests, "ip hdrlength > 5 drop", "headers"),
		arriving("drops-ipv4-options-of-replies", replies, "ip hdrlength > 5 drop", "headers"),
		arriving("drops-hop-by-hop-options", requests, "meta l4proto { tcp, udp } exthdr hbh exists drop", "headers"),
		arriving("drops-destination-options", replies, "exthdr dst exists drop", "headers"),
		arriving("clears-identifications", all, "ip id set 0", "headers", "headers-direct"),
		arriving("permits-fragments", all, "ip frag-off & 0x4000 != 0 ip frag-off set 0", "headers"),
		arriving("forbids-fragments", all, "ip frag-off & 0xffff == 0 ip frag-off set 0x4000", "headers"),
		arriving("clears-flow-labels", all, "ip6 flowlabel set 0", "headers", "headers-transparent"),
	}
}

func inTransportHeaders() []Mutation {
	return []Mutation{
		arriving("strips-sack-permitted", all, "reset tcp option sack-perm", "headers", "valid-packets"),
		arriving("strips-sack-permitted", all, "reset tcp option sack-perm", "valid-packets").of("envoy"),
		arriving("strips-timestamps", all, "reset tcp option timestamp", "headers", "valid-packets"),
		arriving("strips-timestamps-of-replies", replies, "reset tcp option timestamp", "headers"),
		arriving("strips-window-scaling", all, "reset tcp option window", "headers", "valid-packets"),
		arriving("strips-window-scaling", requests, "reset tcp option window", "valid-packets").of("envoy"),
		arriving("strips-selective-acknowledgements", all, "reset tcp option sack", "headers"),
		arriving("strips-fast-open", requests, "reset tcp option 34", "headers"),
		arriving("strips-fast-open-of-replies", replies, "reset tcp option 34", "headers"),
		arriving("strips-unknown-options", all, "reset tcp option 253", "headers", "headers-direct"),
		arriving("clamps-the-segment-size", all, "tcp flags & syn != 0 tcp option maxseg size set 1000", "headers"),
		arriving("offers-tiny-segments", all, "tcp flags & syn != 0 tcp option maxseg size set 200", "valid-packets", "headers"),
		arriving("drops-a-syn-with-data", requests, "tcp flags & (syn | ack) == syn meta length > 90 drop", "headers", "loss"),
		arriving("clears-the-urgent-pointer", all, "tcp urgptr set 0", "headers"),
		arriving("clears-the-urgent-flag", requests, "tcp flags & urg != 0 tcp flags set ack", "headers"),
		arriving("clears-reserved-flags", all, "tcp reserved set 0", "headers"),
		arriving("refuses-ecn", requests, "tcp flags & (syn | ack) == syn tcp flags set syn", "headers", "valid-packets"),
		arriving("refuses-ecn", requests, "tcp flags & (syn | ack) == syn tcp flags set syn", "valid-packets").of("envoy"),
		arriving("drops-a-syn-with-ecn", requests, "tcp flags & (syn | ack | ecn | cwr) == syn | ecn | cwr drop", "headers", "valid-packets"),
		arriving("rewrites-windows", replies, "tcp flags & (syn | ack) == ack tcp window set 1000", "headers"),
		leaving("rewrites-ports-transparent", "oifname back udp dport 30081 udp sport set 12345", "headers-transparent"),
		leaving("rewrites-ports-direct", "oifname back udp dport 80 udp sport set 12345", "headers-direct"),
		arriving("drops-unsummed-datagrams", requests, "udp checksum 0 drop", "headers", "valid-packets"),
		arriving("drops-unsummed-datagrams", requests, "udp checksum 0 drop", "valid-packets").of("envoy"),
		leaving("spoils-unsummed-datagrams", "udp checksum 0 udp checksum set 0xffff", "headers", "headers-direct"),
		leaving("removes-checksums-of-datagrams", "udp checksum set 0", "headers", "headers-transparent"),
		leaving("writes-no-checksum-for-ones", "udp checksum 0xffff udp checksum set 0", "headers"),
		leaving("spoils-a-checksum-in-fifty", "meta l4proto tcp numgen inc mod 50 49 tcp checksum set 0x1234", "valid-packets", "loss"),
	}
}

// inDelivery returns faults in which packets are lost or doubled.
func inDelivery() []Mutation {
	return []Mutation{
		arriving("loses-a-packet-in-a-hundred", requests, "meta l4proto { tcp, udp } numgen inc mod 100 99 drop", "loss"),
		arriving("loses-a-reply-in-a-hundred", replies, "meta l4proto { tcp, udp } numgen random mod 100 0 drop", "loss"),
		arriving("loses-a-segment-in-a-hundred", requests, "meta l4proto tcp numgen random mod 100 0 drop", "loss"),
		arriving("loses-a-segment-in-a-hundred", requests, "meta l4proto tcp numgen random mod 100 0 drop", "loss").of("envoy"),
		arriving("loses-a-reply-segment-in-a-hundred", replies, "meta l4proto tcp numgen inc mod 100 99 drop", "loss").of("envoy"),
		arriving("loses-a-datagram-in-a-thousand", requests, "meta l4proto udp numgen inc mod 1000 999 drop", "loss"),
		arriving("loses-a-datagram-in-a-thousand", replies, "meta l4proto udp numgen inc mod 1000 999 drop", "loss").of("envoy"),
		arriving("loses-acknowledgements", requests, "tcp flags ack meta length 52 numgen inc mod 50 49 drop; tcp flags ack meta length 72 numgen inc mod 50 49 drop", "loss"),
		{Name: "doubles-datagrams", CaughtBy: []string{"loss", "headers"}, host: func() error {
			return nftAt(replies, `add table ip fault
				add chain ip fault out { type filter hook postrouting priority 300; }
				add rule ip fault out oifname back udp dport { 30080, 30081 } dup to 198.51.100.11 device back`)
		}},
	}
}
