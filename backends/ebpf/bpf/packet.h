// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Packets: how they are read, and what checksums become when something is rewritten (RFC 1624).
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "model.h"

#ifdef LB_XDP
typedef struct xdp_md context;
#else
typedef struct __sk_buff context;
#endif

enum fragment { WHOLE, FIRST, LATER };

struct packet {
	struct tuple tuple;
	__u32 network, transport; // offsets
	__u32 length;             // of the IP packet
	__u8 fragment;
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type, icmp_code;
	__u8 df;
	__u8 tcp_header; // its length
	__u32 fragment_id;
	__be32 sequence, acknowledged;
};

enum tcp_flag { FIN = 0x01, SYN = 0x02, RST = 0x04, ACK = 0x10 };

// Offsets stay below this, for the verifier's sake.
#define MAX_OFFSET 511

// at is a pointer to size bytes of the packet; none if it is too short.
static __always_inline void *at(context *ctx, __u32 offset, __u32 size)
{
	void *data, *end;
	__u64 from = offset;

	// Verifiers of older kernels are strict about two things that the compiler would do otherwise. They refuse a context pointer to which
	// something was added. They forget the limit of an offset if one register is compared and a copy of it is added.
	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(data) : "r"(ctx), "i"(offsetof(context, data)));
	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(end) : "r"(ctx), "i"(offsetof(context, data_end)));
	asm volatile("" : "+r"(from));
	if (from > MAX_OFFSET)
		return NULL;
	data += from;
	if (data + size > end)
		return NULL;
	return data;
}

enum parsed { NOT_OURS = 0, READ = 1, BROKEN = 2 };

static __always_inline int parse_ports(context *ctx, struct packet *p)
{
	__be16 *ports;

	switch (p->tuple.protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = at(ctx, p->transport, sizeof(*tcp));

		if (!tcp || tcp->doff < 5 || (p->fragment == WHOLE && p->transport + tcp->doff * 4 > p->network + p->length))
			return BROKEN;
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->tcp_header = tcp->doff * 4;
		p->sequence = tcp->seq;
		p->acknowledged = tcp->ack_seq;
		break;
	}
	case IPPROTO_UDP: {
		struct udphdr *udp = at(ctx, p->transport, sizeof(*udp));

		if (!udp || bpf_ntohs(udp->len) < sizeof(*udp) || (p->fragment == WHOLE && p->transport + bpf_ntohs(udp->len) > p->network + p->length))
			return BROKEN;
		break;
	}
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		__u8 *icmp = at(ctx, p->transport, 8);

		if (!icmp)
			return BROKEN;
		p->icmp_type = icmp[0];
		p->icmp_code = icmp[1];
		return READ;
	}
	default:
		return READ;
	}
	// A first fragment holds the ports at least, and says so.
	ports = at(ctx, p->transport, 4);
	if (!ports || p->transport + 8 > p->network + p->length)
		return BROKEN;
	p->tuple.source_port = ports[0];
	p->tuple.destination_port = ports[1];
	return READ;
}

// length is that of the IP packet. The header of one that the kernel has joined may not be able to say it (BIG TCP).
static __always_inline __u32 length(context *ctx, const struct packet *p, __u32 said)
{
#ifndef LB_XDP
	if (ctx->gso_size)
		return ctx->len - p->network;
#endif
	return said;
}

static __always_inline int parse_ipv4(context *ctx, struct packet *p)
{
	struct iphdr *ip = at(ctx, p->network, sizeof(*ip));
	__u16 fragment;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return BROKEN;
	p->tuple.family = IPV4;
	p->tuple.protocol = ip->protocol;
	p->tuple.source.word[3] = ip->saddr;
	p->tuple.destination.word[3] = ip->daddr;
	p->transport = p->network + ip->ihl * 4;
	p->length = length(ctx, p, bpf_ntohs(ip->tot_len));
	if (p->length < ip->ihl * 4)
		return BROKEN;
	p->ttl = ip->ttl;
	fragment = bpf_ntohs(ip->frag_off);
	p->df = !!(fragment & 0x4000);
	p->fragment = fragment & 0x1fff ? LATER : fragment & 0x2000 ? FIRST : WHOLE;
	p->fragment_id = ip->id;
	return READ;
}

static __always_inline int parse_ipv6(context *ctx, struct packet *p)
{
	struct ipv6hdr *ip = at(ctx, p->network, sizeof(*ip));
	__u8 next;

	if (!ip || ip->version != 6)
		return BROKEN;
	p->tuple.family = IPV6;
	__builtin_memcpy(&p->tuple.source, &ip->saddr, 16);
	__builtin_memcpy(&p->tuple.destination, &ip->daddr, 16);
	p->length = length(ctx, p, bpf_ntohs(ip->payload_len) + sizeof(*ip));
	p->ttl = ip->hop_limit;
	p->df = 1;
	p->transport = p->network + sizeof(*ip);
	next = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < 6; i++) {
		__u8 *extension;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		extension = at(ctx, p->transport, 8);
		if (!extension)
			return BROKEN;
		if (next == IPPROTO_FRAGMENT) {
			__u16 offset = bpf_ntohs(*(__be16 *)(extension + 2));

			p->fragment = offset & 0xfff8 ? LATER : offset & 1 ? FIRST : WHOLE;
			p->fragment_id = *(__u32 *)(extension + 4);
			next = extension[0];
			p->transport += 8;
			if (p->fragment == LATER)
				break;
			continue;
		}
		next = extension[0];
		p->transport += (extension[1] + 1) * 8;
		if (p->transport > MAX_OFFSET)
			return BROKEN;
	}
	p->tuple.protocol = next;
	// The headers may be longer than what the packet says it holds.
	return p->transport > p->network + p->length ? BROKEN : READ;
}

// parse reads a packet up to its ports. What is not IP is none of ours; neither are frames with a VLAN tag, which come again,
// without it, at the interface of their VLAN.
static __always_inline int parse(context *ctx, struct packet *p)
{
	struct ethhdr *eth = at(ctx, 0, sizeof(*eth));
	__be16 kind;
	int result;

	if (!eth)
		return NOT_OURS;
	kind = eth->h_proto;
	p->network = sizeof(*eth);
	if (kind == bpf_htons(ETH_P_IP))
		result = parse_ipv4(ctx, p);
	else if (kind == bpf_htons(ETH_P_IPV6))
		result = parse_ipv6(ctx, p);
	else
		return NOT_OURS;
	if (result != READ || p->fragment == LATER)
		return result;
	return parse_ports(ctx, p);
}

static __always_inline __u32 add_carry(__u32 sum, __u32 value)
{
	sum += value;
	return sum < value ? sum + 1 : sum;
}

// folded is the sum of 32-bit words as a sum of 16-bit words.
static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u32 add_addr(__u32 sum, const struct addr *a)
{
	sum = add_carry(sum, a->word[0]);
	sum = add_carry(sum, a->word[1]);
	sum = add_carry(sum, a->word[2]);
	return add_carry(sum, a->word[3]);
}

static __always_inline __u32 subtract_addr(__u32 sum, const struct addr *a)
{
	sum = add_carry(sum, ~a->word[0]);
	sum = add_carry(sum, ~a->word[1]);
	sum = add_carry(sum, ~a->word[2]);
	return add_carry(sum, ~a->word[3]);
}

// updated is a checksum after the difference has been added to what it covers.
static __always_inline __sum16 updated(__sum16 checksum, __u32 difference)
{
	return ~folded(add_carry(folded(difference), (__u16)~checksum));
}
