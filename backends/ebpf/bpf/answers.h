// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Answers by the gateway itself: resets, ICMP errors and echo replies.
#pragma once

#include "flows.h"

enum icmp { ECHO_REPLY = 0, UNREACHABLE = 3, PORT_UNREACHABLE = 3, FRAGMENTATION_NEEDED = 4, ECHO_REQUEST = 8, TIME_EXCEEDED = 11, PARAMETER_PROBLEM = 12 };
enum icmp6 { UNREACHABLE6 = 1, PORT_UNREACHABLE6 = 4, TOO_BIG6 = 2, TIME_EXCEEDED6 = 3, PARAMETER_PROBLEM6 = 4, ECHO_REQUEST6 = 128, ECHO_REPLY6 = 129 };

enum { PACKET_TTL = 64, TCP_HEADER = 20, ICMP_HEADER = 8, MAX_QUOTED = 128 };

// Each processor limits the answers that it sends.
enum { ANSWERS_PER_SECOND = 1000, ANSWER_BURST = 100 };

struct budget {
	__u64 spent; // ns: the time up to which the answers have used the budget
};

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct budget, 1, 0) budgets SEC(".maps");

static __always_inline int within_answer_limit(void)
{
	const __u64 each = 1000000000 / ANSWERS_PER_SECOND;
	struct budget *b = bpf_map_lookup_elem(&budgets, &(__u32){0});
	__u64 time = bpf_ktime_get_coarse_ns();

	if (!b)
		return 0;
	if (b->spent < time - (__u64)ANSWER_BURST * each)
		b->spent = time - (__u64)ANSWER_BURST * each;
	if (b->spent + each > time)
		return 0;
	b->spent += each;
	return 1;
}

static __always_inline __u32 header_length(const struct packet *p) { return p->tuple.family == IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr); }

// pseudo_header_sum returns the sum of the IP header's fields that TCP, UDP and ICMPv6 checksums cover.
static __always_inline __u32 pseudo_header_sum(const struct packet *p, __u32 protocol, __u32 length)
{
	__u32 sum = add_addr(add_addr(0, &p->tuple.source), &p->tuple.destination);

	return add_carry(add_carry(sum, bpf_htonl(protocol)), bpf_htonl(length));
}

// swap_ethernet swaps the Ethernet addresses.
static __always_inline int swap_ethernet(context *ctx)
{
	struct ethhdr *eth = bytes_at(ctx, 0, sizeof(*eth));
	__u8 mac[ETH_ALEN];

	if (!eth)
		return MALFORMED;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return OK;
}

// write_headers writes the Ethernet and IP headers of an answer to the packet. The answer has length bytes after the IP header.
static __always_inline int write_headers(context *ctx, const struct packet *p, __u8 protocol, __u32 length)
{
	if (swap_ethernet(ctx) != OK)
		return MALFORMED;
	if (p->tuple.family == IPV4) {
		struct iphdr *ip = bytes_at(ctx, p->network, sizeof(*ip));
		__u32 sum = 0;

		if (!ip)
			return MALFORMED;
		*(__u32 *)ip = bpf_htonl(0x45000000 | (sizeof(*ip) + length));
		((__u32 *)ip)[1] = bpf_htonl(0x4000); // do not fragment
		((__u32 *)ip)[2] = bpf_htonl(PACKET_TTL << 24 | protocol << 16);
		ip->saddr = p->tuple.destination.word[3];
		ip->daddr = p->tuple.source.word[3];
#pragma unroll
		for (int i = 0; i < 5; i++)
			sum = add_carry(sum, ((__u32 *)ip)[i]);
		ip->check = ~fold_sum(sum);
	} else {
		struct ipv6hdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		*(__u32 *)ip = bpf_htonl(0x60000000);
		ip->payload_len = bpf_htons(length);
		ip->nexthdr = protocol;
		ip->hop_limit = PACKET_TTL;
		__builtin_memcpy(&ip->saddr, &p->tuple.destination, 16);
		__builtin_memcpy(&ip->daddr, &p->tuple.source, 16);
	}
	return OK;
}

static __always_inline int resize(context *ctx, __u32 length)
{
	return bpf_skb_change_tail(ctx, length, 0) || bpf_skb_pull_data(ctx, length);
}

static __noinline int send_reset(context *ctx, const struct packet *p)
{
	__u32 words[5] = {}, sum, sequence = 0, acknowledge = 0, at_tcp = p->network + header_length(p), payload;
	struct tcphdr *tcp = bytes_at(ctx, p->transport, sizeof(*tcp));
	__u32 *out;

	if (!tcp || p->tcp_flags & RST)
		return dropped(DROP_NO_FLOW);
	payload = p->length - (p->transport - p->network) - tcp->doff * 4;
	// A reset by a closed port: RFC 9293, 3.10.7.1.
	if (p->tcp_flags & ACK)
		sequence = tcp->ack_seq;
	else
		acknowledge = bpf_htonl(bpf_ntohl(tcp->seq) + payload + !!(p->tcp_flags & SYN) + !!(p->tcp_flags & FIN));
	words[0] = (__u32)p->tuple.source_port << 16 | p->tuple.destination_port;
	words[1] = sequence;
	words[2] = acknowledge;
	words[3] = bpf_htonl((TCP_HEADER / 4) << 28 | (RST | (p->tcp_flags & ACK ? 0 : ACK)) << 16);
	sum = pseudo_header_sum(p, IPPROTO_TCP, TCP_HEADER);
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum = add_carry(sum, words[i]);
	words[4] = (__u16)~fold_sum(sum);
	if (resize(ctx, at_tcp + TCP_HEADER) || write_headers(ctx, p, IPPROTO_TCP, TCP_HEADER) != OK)
		return dropped(DROP_MALFORMED);
	out = bytes_at(ctx, at_tcp, TCP_HEADER);
	if (!out)
		return dropped(DROP_MALFORMED);
	__builtin_memcpy(out, words, TCP_HEADER);
	dropped(REFUSED);
	return bpf_redirect(ctx->ifindex, 0);
}

// send_icmp_error answers with an ICMP error about the packet. last is the second word of its header.
static __noinline int send_icmp_error(context *ctx, const struct packet *p, __u8 type, __u8 code, __u32 last)
{
	__u32 quoted = p->transport - p->network + ICMP_HEADER, grown = header_length(p) + ICMP_HEADER, at_icmp = p->network + header_length(p);
	__u32 sum = p->tuple.family == IPV4 ? 0 : pseudo_header_sum(p, IPPROTO_ICMPV6, ICMP_HEADER + quoted), *icmp;

	if (quoted > MAX_QUOTED || resize(ctx, p->network + quoted) || bpf_skb_adjust_room(ctx, grown, BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_pull_data(ctx, p->network + grown + quoted))
		return dropped(DROP_MALFORMED);
	if (write_headers(ctx, p, p->tuple.family == IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6, ICMP_HEADER + quoted) != OK)
		return dropped(DROP_MALFORMED);
	icmp = bytes_at(ctx, at_icmp, ICMP_HEADER);
	if (!icmp)
		return dropped(DROP_MALFORMED);
	icmp[0] = bpf_htonl((__u32)type << 24 | (__u32)code << 16);
	icmp[1] = last;
	for (__u32 i = 0; i < (MAX_QUOTED + ICMP_HEADER) / 4; i++) {
		__u32 *word;

		if (i * 4 >= ICMP_HEADER + quoted)
			break;
		word = bytes_at(ctx, at_icmp + i * 4, 4);
		if (!word)
			return dropped(DROP_MALFORMED);
		sum = add_carry(sum, *word);
	}
	icmp = bytes_at(ctx, at_icmp, ICMP_HEADER);
	if (!icmp)
		return dropped(DROP_MALFORMED);
	((__u16 *)icmp)[1] = ~fold_sum(sum);
	return bpf_redirect(ctx->ifindex, 0);
}

static __always_inline int refuse(context *ctx, const struct packet *p)
{
	if (!within_answer_limit())
		return dropped(DROP_RATE);
	if (p->tuple.protocol == IPPROTO_TCP)
		return send_reset(ctx, p);
	dropped(REFUSED);
	if (p->tuple.family == IPV4)
		return send_icmp_error(ctx, p, UNREACHABLE, PORT_UNREACHABLE, 0);
	return send_icmp_error(ctx, p, UNREACHABLE6, PORT_UNREACHABLE6, 0);
}

static __always_inline int report_too_big(context *ctx, const struct packet *p, __u32 mtu)
{
	dropped(TOO_BIG);
	if (!within_answer_limit())
		return DROP;
	if (p->tuple.family == IPV4)
		return send_icmp_error(ctx, p, UNREACHABLE, FRAGMENTATION_NEEDED, bpf_htonl(mtu));
	return send_icmp_error(ctx, p, TOO_BIG6, 0, bpf_htonl(mtu));
}

static __always_inline int report_ttl_exceeded(context *ctx, const struct packet *p)
{
	dropped(DROP_TTL);
	if (!within_answer_limit())
		return DROP;
	return p->tuple.family == IPV4 ? send_icmp_error(ctx, p, TIME_EXCEEDED, 0, 0) : send_icmp_error(ctx, p, TIME_EXCEEDED6, 0, 0);
}

// set_ttl writes the packet's TTL.
static __always_inline int set_ttl(context *ctx, const struct packet *p, __u8 ttl)
{
	if (p->tuple.family == IPV4) {
		struct iphdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		// The TTL is the high byte of a 16-bit word.
		ip->check = update_checksum(update_checksum(ip->check, (__u16)~bpf_htons(ip->ttl << 8)), bpf_htons(ttl << 8));
		ip->ttl = ttl;
	} else {
		struct ipv6hdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		ip->hop_limit = ttl;
	}
	return OK;
}

// swap_addresses sends the packet back to where it came from.
static __always_inline int swap_addresses(context *ctx, const struct packet *p)
{
	if (swap_ethernet(ctx) != OK)
		return MALFORMED;
	if (p->tuple.family == IPV4) {
		struct iphdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		ip->saddr = p->tuple.destination.word[3];
		ip->daddr = p->tuple.source.word[3];
	} else {
		struct ipv6hdr *ip = bytes_at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return MALFORMED;
		__builtin_memcpy(&ip->saddr, &p->tuple.destination, 16);
		__builtin_memcpy(&ip->daddr, &p->tuple.source, 16);
	}
	return set_ttl(ctx, p, PACKET_TTL);
}

// send_echo_reply turns an echo request, or a fragment of one, into the reply. The addresses are part of a checksum, but swapping them does not change it.
static __always_inline int send_echo_reply(context *ctx, const struct packet *p, __u8 reply)
{
	if (p->fragment != LATER) {
		__u16 *icmp = bytes_at(ctx, p->transport, ICMP_HEADER);
		__be16 before, after;

		if (!icmp)
			return dropped(DROP_MALFORMED);
		before = icmp[0];
		after = bpf_htons((__u16)reply << 8);
		icmp[0] = after;
		icmp[1] = update_checksum(icmp[1], add_carry(after, (__u16)~before));
		dropped(ECHO);
	}
	if (swap_addresses(ctx, p) != OK)
		return dropped(DROP_MALFORMED);
	return bpf_redirect(ctx->ifindex, 0);
}

static __always_inline int is_echo_request(const struct packet *p)
{
	return p->icmp_type == (p->tuple.protocol == IPPROTO_ICMP ? ECHO_REQUEST : ECHO_REQUEST6);
}

// answer_icmp handles ICMP messages to a VIP itself.
static __always_inline int answer_icmp(context *ctx, const struct packet *p)
{
	int v4 = p->tuple.protocol == IPPROTO_ICMP;
	__u32 fragment_header = v4 || p->fragment == WHOLE ? 0 : 8;

	// Neighbour discovery is left to the process that announces the VIP.
	if (!v4 && p->icmp_type >= 133 && p->icmp_type <= 137)
		return PASS;
	if (p->transport != p->network + header_length(p) + fragment_header || (p->fragment != LATER && !is_echo_request(p)))
		return dropped(DROP_NO_FLOW);
	if (!within_answer_limit())
		return dropped(DROP_RATE);
	return send_echo_reply(ctx, p, v4 ? ECHO_REPLY : ECHO_REPLY6);
}
