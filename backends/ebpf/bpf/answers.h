// SPDX-License-Identifier: MIT OR GPL-2.0-only
// What the gateway answers by itself: resets and ICMP errors for what nobody serves, echo replies, and that a packet is too big.
#pragma once

#include "flows.h"

enum icmp { ECHO_REPLY = 0, UNREACHABLE = 3, PORT_UNREACHABLE = 3, FRAGMENTATION_NEEDED = 4, ECHO_REQUEST = 8, TIME_EXCEEDED = 11, PARAMETER_PROBLEM = 12 };
enum icmp6 { UNREACHABLE6 = 1, PORT_UNREACHABLE6 = 4, TOO_BIG6 = 2, TIME_EXCEEDED6 = 3, PARAMETER_PROBLEM6 = 4, ECHO_REQUEST6 = 128, ECHO_REPLY6 = 129 };

enum { PACKET_TTL = 64, TCP_HEADER = 20, ICMP_HEADER = 8, MOST_QUOTED = 128 };

// Answers by the gateway itself are limited for each processor.
enum { ANSWERS_A_SECOND = 1000, ANSWERS_AT_ONCE = 100 };

struct budget {
	__u64 since; // ns
	__u64 spent; // ns of the time that the answers are worth
};

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct budget, 1, 0) budgets SEC(".maps");

static __always_inline int may_answer(void)
{
	const __u64 each = 1000000000 / ANSWERS_A_SECOND;
	struct budget *b = bpf_map_lookup_elem(&budgets, &(__u32){0});
	__u64 time = bpf_ktime_get_coarse_ns();

	if (!b)
		return 0;
	if (b->spent < time - (__u64)ANSWERS_AT_ONCE * each)
		b->spent = time - (__u64)ANSWERS_AT_ONCE * each;
	if (b->spent + each > time)
		return 0;
	b->spent += each;
	return 1;
}

static __always_inline __u32 header_length(const struct packet *p) { return p->tuple.family == IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr); }

// pseudo_header is the sum of what TCP, UDP and ICMPv6 checksums cover of the IP header.
static __always_inline __u32 pseudo_header(const struct packet *p, __u32 protocol, __u32 length)
{
	__u32 sum = add_addr(add_addr(0, &p->tuple.source), &p->tuple.destination);

	return add_carry(add_carry(sum, bpf_htonl(protocol)), bpf_htonl(length));
}

// write_back writes Ethernet and IP headers of an answer to the packet, which has length bytes after the IP header.
static __always_inline int write_back(context *ctx, const struct packet *p, __u8 protocol, __u32 length)
{
	struct ethhdr *eth = at(ctx, 0, sizeof(*eth));
	__u8 mac[ETH_ALEN];

	if (!eth)
		return BROKEN;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	if (p->tuple.family == IPV4) {
		struct iphdr *ip = at(ctx, p->network, sizeof(*ip));
		__u32 sum = 0;

		if (!ip)
			return BROKEN;
		*(__u32 *)ip = bpf_htonl(0x45000000 | (sizeof(*ip) + length));
		((__u32 *)ip)[1] = bpf_htonl(0x4000); // do not fragment
		((__u32 *)ip)[2] = bpf_htonl(PACKET_TTL << 24 | protocol << 16);
		ip->saddr = p->tuple.destination.word[3];
		ip->daddr = p->tuple.source.word[3];
#pragma unroll
		for (int i = 0; i < 5; i++)
			sum = add_carry(sum, ((__u32 *)ip)[i]);
		ip->check = ~folded(sum);
	} else {
		struct ipv6hdr *ip = at(ctx, p->network, sizeof(*ip));

		if (!ip)
			return BROKEN;
		*(__u32 *)ip = bpf_htonl(0x60000000);
		ip->payload_len = bpf_htons(length);
		ip->nexthdr = protocol;
		ip->hop_limit = PACKET_TTL;
		__builtin_memcpy(&ip->saddr, &p->tuple.destination, 16);
		__builtin_memcpy(&ip->daddr, &p->tuple.source, 16);
	}
	return READ;
}

static __always_inline int resize(context *ctx, __u32 length)
{
	return bpf_skb_change_tail(ctx, length, 0) || bpf_skb_pull_data(ctx, length);
}

static __noinline int reset(context *ctx, const struct packet *p)
{
	__u32 words[5] = {}, sum, sequence = 0, acknowledge = 0, at_tcp = p->network + header_length(p), payload;
	struct tcphdr *tcp = at(ctx, p->transport, sizeof(*tcp));
	__u32 *out;

	if (!tcp || p->tcp_flags & RST)
		return dropped(DROP_NO_FLOW);
	payload = p->length - (p->transport - p->network) - tcp->doff * 4;
	// RFC 9293, 3.10.7.1: a reset for what comes to a closed port.
	if (p->tcp_flags & ACK)
		sequence = tcp->ack_seq;
	else
		acknowledge = bpf_htonl(bpf_ntohl(tcp->seq) + payload + !!(p->tcp_flags & SYN) + !!(p->tcp_flags & FIN));
	words[0] = (__u32)p->tuple.source_port << 16 | p->tuple.destination_port;
	words[1] = sequence;
	words[2] = acknowledge;
	words[3] = bpf_htonl((TCP_HEADER / 4) << 28 | (RST | (p->tcp_flags & ACK ? 0 : ACK)) << 16);
	sum = pseudo_header(p, IPPROTO_TCP, TCP_HEADER);
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum = add_carry(sum, words[i]);
	words[4] = (__u16)~folded(sum);
	if (resize(ctx, at_tcp + TCP_HEADER) || write_back(ctx, p, IPPROTO_TCP, TCP_HEADER) != READ)
		return dropped(DROP_MALFORMED);
	out = at(ctx, at_tcp, TCP_HEADER);
	if (!out)
		return dropped(DROP_MALFORMED);
	__builtin_memcpy(out, words, TCP_HEADER);
	dropped(REFUSED);
	return bpf_redirect(ctx->ifindex, 0);
}

// report answers with an ICMP error about the packet. last is the second word of its header.
static __noinline int report(context *ctx, const struct packet *p, __u8 type, __u8 code, __u32 last)
{
	__u32 quoted = p->transport - p->network + ICMP_HEADER, grown = header_length(p) + ICMP_HEADER, at_icmp = p->network + header_length(p);
	__u32 sum = p->tuple.family == IPV4 ? 0 : pseudo_header(p, IPPROTO_ICMPV6, ICMP_HEADER + quoted), *icmp;

	if (quoted > MOST_QUOTED || resize(ctx, p->network + quoted) || bpf_skb_adjust_room(ctx, grown, BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_pull_data(ctx, p->network + grown + quoted))
		return dropped(DROP_MALFORMED);
	if (write_back(ctx, p, p->tuple.family == IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6, ICMP_HEADER + quoted) != READ)
		return dropped(DROP_MALFORMED);
	icmp = at(ctx, at_icmp, ICMP_HEADER);
	if (!icmp)
		return dropped(DROP_MALFORMED);
	icmp[0] = bpf_htonl((__u32)type << 24 | (__u32)code << 16);
	icmp[1] = last;
	for (__u32 i = 0; i < (MOST_QUOTED + ICMP_HEADER) / 4; i++) {
		__u32 *word;

		if (i * 4 >= ICMP_HEADER + quoted)
			break;
		word = at(ctx, at_icmp + i * 4, 4);
		if (!word)
			return dropped(DROP_MALFORMED);
		sum = add_carry(sum, *word);
	}
	icmp = at(ctx, at_icmp, ICMP_HEADER);
	if (!icmp)
		return dropped(DROP_MALFORMED);
	((__u16 *)icmp)[1] = ~folded(sum);
	return bpf_redirect(ctx->ifindex, 0);
}

static __always_inline int refuse(context *ctx, const struct packet *p)
{
	if (!may_answer())
		return dropped(DROP_RATE);
	if (p->tuple.protocol == IPPROTO_TCP)
		return reset(ctx, p);
	dropped(REFUSED);
	if (p->tuple.family == IPV4)
		return report(ctx, p, UNREACHABLE, PORT_UNREACHABLE, 0);
	return report(ctx, p, UNREACHABLE6, PORT_UNREACHABLE6, 0);
}

static __always_inline int too_big(context *ctx, const struct packet *p, __u32 mtu)
{
	dropped(TOO_BIG);
	if (!may_answer())
		return DROP;
	if (p->tuple.family == IPV4)
		return report(ctx, p, UNREACHABLE, FRAGMENTATION_NEEDED, bpf_htonl(mtu));
	return report(ctx, p, TOO_BIG6, 0, bpf_htonl(mtu));
}

static __always_inline int out_of_time(context *ctx, const struct packet *p)
{
	dropped(DROP_TTL);
	if (!may_answer())
		return DROP;
	return p->tuple.family == IPV4 ? report(ctx, p, TIME_EXCEEDED, 0, 0) : report(ctx, p, TIME_EXCEEDED6, 0, 0);
}

static __always_inline int echo(context *ctx, const struct packet *p, __u8 reply)
{
	__u16 *icmp = at(ctx, p->transport, ICMP_HEADER);
	__be16 before, after;

	if (!icmp)
		return dropped(DROP_MALFORMED);
	before = icmp[0];
	after = bpf_htons((__u16)reply << 8);
	icmp[0] = after;
	icmp[1] = updated(icmp[1], add_carry(after, (__u16)~before));
	if (write_back(ctx, p, p->tuple.protocol, p->length - (p->transport - p->network)) != READ)
		return dropped(DROP_MALFORMED);
	dropped(ECHO);
	return bpf_redirect(ctx->ifindex, 0);
}

// answer_icmp is for what comes for a VIP itself.
static __always_inline int answer_icmp(context *ctx, const struct packet *p)
{
	int v4 = p->tuple.protocol == IPPROTO_ICMP;

	// Neighbour discovery is for who announces the VIP.
	if (!v4 && p->icmp_type >= 133 && p->icmp_type <= 137)
		return PASS;
	if (p->fragment != WHOLE || p->transport != p->network + header_length(p) || p->icmp_type != (v4 ? ECHO_REQUEST : ECHO_REQUEST6))
		return dropped(DROP_NO_FLOW);
	if (!may_answer())
		return dropped(DROP_RATE);
	return echo(ctx, p, v4 ? ECHO_REPLY : ECHO_REPLY6);
}
